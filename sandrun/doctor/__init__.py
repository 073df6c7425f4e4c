"""What works here and what does not: one check per function, one report, by system.

Promises that looking leaves nothing behind, and that each failed check names the command that mends
it. Imports lifecycle and what lies below it, since it examines what they do.
"""

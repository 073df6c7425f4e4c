"""What the user asked for: options, their values and sources, whom a file may speak for, the
project.

Promises one precedence for all settings, and that what the user set is never loosened by a file
that came with a project. Imports messages, platform and model; never acts on a process.
"""

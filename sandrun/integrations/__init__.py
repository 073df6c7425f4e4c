"""The ways into the queue besides typing `sandrun`: make, shims, hooks, notifications, CI.

Promises that each ends in `sandrun -- COMMAND`, so that all runs take the one path, and costs a
plain run nothing. Imports lifecycle and what lies below it.
"""

"""The ways into the queue besides typing `sandrun`: make, shims, hooks, notifications, CI.

Each ends in `sandrun -- COMMAND`, so that the one path (`sandrun.lifecycle.runner`) is everybody's;
nothing here is on the path of a plain run. Imports lifecycle and what lies below it.
"""

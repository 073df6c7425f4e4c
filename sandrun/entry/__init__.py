"""The ways into the queue besides typing `sandrun`: make, shims, hooks, Python, CI.

Each of them ends in a `sandrun -- COMMAND`, so that the one path of a run
(`sandrun.lifecycle.runner`) is everybody's. Nothing here is on the path of a plain run.
"""

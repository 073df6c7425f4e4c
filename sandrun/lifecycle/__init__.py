"""A run from its request to its record: admission, the one path, recovery, kill, status.

The only room that knows both the queue and the supervision. Imports queue, supervise, git,
backends, config and what lies below them. (Not called run: `sandrun.run` is a function for Python
programs.)
"""

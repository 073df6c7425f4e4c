"""A run from its request to its record: admission, the one path, recovery, kill, status.

Promises that every run takes the same path and that a killed run is cleaned up by the next one. The
only room that knows both the queue and supervision. Imports queue, supervise, git, backends, config
and what lies below them. (It is not called run: `sandrun.run` is a public function.)
"""

"""Git, guarded: concurrent git on a repository waits instead of failing.

Promises that a live lock is never touched, and that a stale one is removed only with proof.
Imports platform, config, messages and model; knows nothing of queues, runs and backends.
"""

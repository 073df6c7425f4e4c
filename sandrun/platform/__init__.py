"""What a system offers, without policy: processes and how one is started, signals, terminals,
files.

What each system has is chosen here and in `processes`, statically; all other modules are of one
system or of every one. Imports model and what Python brings; decisions belong to the rooms above.
"""

import sys

if sys.platform == "win32":
    from sandrun.platform import windows_spawn as spawn
else:
    from sandrun.platform import posix_spawn as spawn

__all__ = ["spawn"]

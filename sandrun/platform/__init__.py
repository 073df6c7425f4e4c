"""What the operating system offers: processes, spawning, signals, terminals, files.

Promises the same contract on every system (`spawn`, `processes`, `folders`, `memory`,
`small_files`), chosen statically; every other module belongs to one system. Leaves policy to the
rooms above. Imports model and bare.
"""

import sys

if sys.platform == "win32":
    from sandrun.platform import windows_spawn as spawn
else:
    from sandrun.platform import posix_spawn as spawn

__all__ = ["spawn"]

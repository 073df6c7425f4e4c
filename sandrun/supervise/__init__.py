"""One command under supervision: signals, limits on time and memory, its end, what it leaves
behind.

Promises that it returns when no process of the run is left, and that whatever kills the supervisor
ends the run too. Imports backends, config, messages, platform and model; knows nothing of queues.
"""

import sys

if sys.platform == "win32":
    from sandrun.supervise.windows_supervisor import Supervisor
else:
    from sandrun.supervise.posix_supervisor import Supervisor

__all__ = ["Supervisor"]

"""Supervision of one command: signals, limits on time and memory, its end, and its leftovers.

Promises that `Supervisor.run` returns when no process of the run is left (except those that the
user wants left or that survive SIGKILL), and that the death of the supervisor ends the run too.
Knows nothing of queues and git. Imports backends, config, messages, platform and model.
"""

import sys

if sys.platform == "win32":
    from sandrun.supervise.windows_supervisor import Supervisor
else:
    from sandrun.supervise.posix_supervisor import Supervisor

__all__ = ["Supervisor"]

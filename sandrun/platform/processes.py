"""Facts about processes, from where this system keeps them."""

import sys

if sys.platform == "win32":
    from sandrun.platform.windows_processes import *
else:
    from sandrun.platform.linux_processes import *

"""`sandrun doctor`: one check per function, in one report. `examine` has a version per system.

Promises that a check leaves nothing behind, and that a failed check names a fix if one is known.
Imports lifecycle and what lies below it, because it examines what they do.
"""

import sys

from sandrun.doctor.report import CAUTION, Check, show

if sys.platform == "win32":
    from sandrun.doctor.windows import examine
else:
    from sandrun.doctor.posix import examine

__all__ = ["CAUTION", "Check", "examine", "show"]

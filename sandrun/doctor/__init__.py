"""What works here and what does not: one check per function, one report, by system.

Promises that a check leaves nothing behind, and that each failed check names the command that fixes
it. Imports lifecycle and what lies below it, because it examines what they do.
"""

import sys

from sandrun.doctor.report import CAUTION, Check, show

if sys.platform == "win32":
    from sandrun.doctor.windows import examine
else:
    from sandrun.doctor.posix import examine

__all__ = ["CAUTION", "Check", "examine", "show"]

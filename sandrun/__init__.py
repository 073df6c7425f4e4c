"""One project command at a time, inside a kernel limit on memory.

The command line is the interface; `sandrun.cli` starts there. Nothing is imported here, because
every `sandrun -- true` pays for it.
"""

__version__ = "0.1.0"

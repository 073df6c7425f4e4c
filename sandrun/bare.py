"""The standard library's `signal` without its enums: importing those takes 1.4 ms, 1/12 of a start.

An interpreter without the private module has the public one. That has the same names, and its enums
equal the same numbers.
"""

try:
    import _signal as signal
except ImportError:
    import signal

__all__ = ["signal"]

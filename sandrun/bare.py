"""The standard library's `signal` without the enums around it: importing those takes 1.4 ms, a
twelfth of a start. An interpreter without the private module has the public one, with the same
names, and its enums are the same numbers.
"""

try:
    import _signal as signal
except ImportError:
    import signal

__all__ = ["signal"]

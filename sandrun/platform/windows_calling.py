"""Making ctypes calls from a table of prototypes: argument types, result types, failures.

A failed call raises OSError with the call's name as `filename` and with `winerror`.
Leaves to others: the table (`sandrun.platform.windows_api`).
"""

import ctypes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

INVALID_HANDLE = (1 << 8 * ctypes.sizeof(ctypes.c_void_p)) - 1
_WAIT_FAILED = 0xFFFFFFFF

NEVER, ZERO, INVALID, FAILED = "never", "zero", "invalid", "failed"
"""Which result is a failure: none, 0 (FALSE, NULL), INVALID_HANDLE_VALUE, WAIT_FAILED."""


class Prototype:
    """One call: its DLL, result type, argument types, and which result is a failure."""

    __slots__ = ("arguments", "dll", "failure", "result")

    def __init__(self, dll: str, result: "Any", failure: str, *arguments: "Any") -> None:
        self.dll = dll
        self.result = result
        self.failure = failure
        self.arguments = arguments

    def failed(self, result: "Any") -> bool:
        """Whether a call that returned `result` failed."""
        if self.failure == ZERO:
            return not result
        if self.failure == INVALID:
            return result is None or result == INVALID_HANDLE
        return self.failure == FAILED and result == _WAIT_FAILED


class Calls:
    """Each call of `table` as a method. `find(dll, name)` returns a ctypes function, or raises
    AttributeError; `last_error()` returns the error number of this thread's last call, and
    `error(name, number)` the OSError for it."""

    def __init__(
        self,
        table: "Mapping[str, Prototype]",
        find: "Callable[[str, str], Any]",
        last_error: "Callable[[], int]",
        error: "Callable[[str, int], OSError]",
    ) -> None:
        self._table = table
        self._find = find
        self.last_error = last_error
        self._error = error

    def __getattr__(self, name: str) -> "Any":
        prototype = self._table[name]
        function = self._find(prototype.dll, name)
        function.argtypes = prototype.arguments
        function.restype = prototype.result

        def check(result: "Any", _function: "Any", _arguments: "Any") -> "Any":
            if prototype.failed(result):
                raise self._error(name, self.last_error())
            return result

        function.errcheck = check
        setattr(self, name, function)
        return function

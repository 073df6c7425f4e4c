"""Files, locks and events of Windows, as the queue needs them. Handles are ints; 0: none.

A lock (LockFileEx) is mandatory for the bytes that it covers. So ours cover one byte far behind the
end of the file, and other processes can still read and write the file. A lock belongs to a handle
and a process; the kernel releases it when the handle is closed or the process exits.
"""

import ctypes
import os
import sys

from sandrun.platform import windows_api
from sandrun.platform.windows_api import calls

SHARE_ALL = (
    windows_api.FILE_SHARE_READ | windows_api.FILE_SHARE_WRITE | windows_api.FILE_SHARE_DELETE
)
_LOCK_AT_HIGH = 0x40000000  # the high half of the offset: 2**62


def extended(path: str) -> str:
    """An absolute path in the form that has no limit of 260 characters."""
    if path.startswith("\\\\?\\"):
        return path
    if path.startswith("\\\\"):
        return "\\\\?\\UNC\\" + path[2:]
    return "\\\\?\\" + path


def open_file(
    path: str, access: int, share: int = SHARE_ALL, how: int = windows_api.OPEN_EXISTING
) -> int:
    """Open a file without following a link; its handle, which no child inherits. Raises OSError."""
    flags = windows_api.FILE_FLAG_OPEN_REPARSE_POINT
    return int(calls.CreateFileW(extended(path), access, share, None, how, flags, None))


def close(handle: int) -> None:
    calls.CloseHandle(handle)


def _lock_offset() -> windows_api.Overlapped:
    return windows_api.Overlapped(OffsetHigh=_LOCK_AT_HIGH)


def try_lock(handle: int, exclusive: bool = True) -> bool:
    """Lock without waiting; False: another handle has it. Raises OSError."""
    flags = windows_api.LOCKFILE_FAIL_IMMEDIATELY | (
        windows_api.LOCKFILE_EXCLUSIVE_LOCK if exclusive else 0
    )
    try:
        calls.LockFileEx(handle, flags, 0, 1, 0, ctypes.byref(_lock_offset()))
        return True
    except OSError as error:
        if windows_api.code(error) == windows_api.ERROR_LOCK_VIOLATION:
            return False
        raise


def wait_lock(handle: int) -> None:
    """Acquire the lock shared; blocks while another handle has it exclusively. Raises OSError."""
    calls.LockFileEx(handle, 0, 0, 1, 0, ctypes.byref(_lock_offset()))


def unlock(handle: int) -> None:
    """Release a lock. Raises OSError if it is not ours."""
    calls.UnlockFileEx(handle, 0, 1, 0, ctypes.byref(_lock_offset()))


def read(handle: int, most: int = 1 << 16) -> bytes:
    """The content of a small file. Raises OSError."""
    buffer = ctypes.create_string_buffer(most)
    got = windows_api.DWORD()
    calls.SetFilePointerEx(handle, 0, None, 0)
    calls.ReadFile(handle, buffer, most, ctypes.byref(got), None)
    return buffer.raw[: got.value]


def write(handle: int, data: bytes) -> None:
    """Replace the content of a file. Raises OSError."""
    done = windows_api.DWORD()
    calls.SetFilePointerEx(handle, 0, None, 0)
    calls.SetEndOfFile(handle)
    if data:
        calls.WriteFile(handle, data, len(data), ctypes.byref(done), None)


def open_log(path: str) -> int:
    """A descriptor whose writes append, even if others write as well. Raises OSError."""
    # With FILE_APPEND_DATA alone the kernel appends each write.
    handle = open_file(
        path, windows_api.GENERIC_READ | windows_api.FILE_APPEND_DATA, how=windows_api.OPEN_ALWAYS
    )
    if sys.platform == "win32":
        import msvcrt

        return msvcrt.open_osfhandle(handle, os.O_BINARY | os.O_NOINHERIT)
    return handle


def make_event(name: "str | None" = None) -> int:
    """An event that wakes one waiter once; others can open it by its name. Raises OSError."""
    return int(calls.CreateEventW(None, False, False, name))


def set_event(handle: int) -> None:
    calls.SetEvent(handle)


def set_named_event(name: str) -> bool:
    """Set the event of that name; False: there is none, or access is denied."""
    try:
        handle = calls.OpenEventW(windows_api.EVENT_MODIFY_STATE, False, name)
    except OSError:
        return False
    calls.SetEvent(handle)
    close(handle)
    return True


def wait_any(handles: "list[int]", seconds: "float | None") -> int:
    """Wait until one of up to 64 handles is signalled: its index; -1: none was, for `seconds`."""
    array = (windows_api.HANDLE * len(handles))(*handles)
    # Rounded up, because the caller would busy-wait if this returned too early.
    span = min(int(max(0.0, seconds or 0.0) * 1000) + 1, windows_api.INFINITE - 1)
    result = calls.WaitForMultipleObjects(
        len(handles), array, False, windows_api.INFINITE if seconds is None else span
    )
    return int(result) if result < len(handles) else -1

"""The completion port of a job, through which the kernel reports what happens in it.

Messages are no proof: the system may lose some, and it also sends those of nested jobs. Source:
"Job Objects" in Microsoft's documentation.
"""

import ctypes
import threading

from sandrun.platform import windows_api, windows_calling
from sandrun.platform.windows_api import calls

_STOP = 0xFFFFFFFF
"""Stops the reader of a port; no message of a job has this number."""


class Port:
    """A job's completion port, read by one thread. `event` is set when messages arrive."""

    def __init__(self, job: int) -> None:
        self.handle = calls.CreateIoCompletionPort(windows_calling.INVALID_HANDLE, None, 0, 1)
        self.event = calls.CreateEventW(None, False, False, None)
        self._new = threading.Condition()
        self._messages: list[tuple[int, int]] = []
        self._empty = False
        port = windows_api.JobPort(job, self.handle)
        kind = windows_api.JobObjectAssociateCompletionPortInformation
        calls.SetInformationJobObject(job, kind, ctypes.byref(port), ctypes.sizeof(port))
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        number, key, value = windows_api.DWORD(), windows_api.SIZE(), windows_api.SIZE()
        places = (ctypes.byref(number), ctypes.byref(key), ctypes.byref(value))
        while True:
            calls.GetQueuedCompletionStatus(self.handle, *places, windows_api.INFINITE)
            if number.value == _STOP:
                return
            with self._new:
                self._messages.append((number.value, value.value))
                self._empty |= number.value == windows_api.JOB_OBJECT_MSG_ACTIVE_PROCESS_ZERO
                self._new.notify_all()
            calls.SetEvent(self.event)

    def read_messages(self) -> "list[tuple[int, int]]":
        """The messages since the last call, each as its number and the pid that it is about."""
        with self._new:
            found, self._messages = self._messages, []
        return found

    def wait_empty(self, seconds: float) -> bool:
        """Wait for a message that a job, ours or a nested one, is empty; return whether it came."""
        with self._new:
            seen = self._empty or self._new.wait_for(lambda: self._empty, seconds)
            self._empty = False
        return seen

    def close(self) -> None:
        calls.PostQueuedCompletionStatus(self.handle, _STOP, 0, None)
        self._reader.join()
        calls.CloseHandle(self.handle)
        calls.CloseHandle(self.event)

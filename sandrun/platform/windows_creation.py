"""Creating a suspended process inside a job.

Promises that the process has the caller's standard handles and console, the given environment and
every inheritable handle, and that it executes no instruction before its thread is resumed.
Leaves to others: the command line (`sandrun.platform.windows_spawn`), the job
(`sandrun.backends.job_object`).
"""

import ctypes

from sandrun.platform import windows_api
from sandrun.platform.windows_api import calls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_ATTRIBUTES = 256
"""Bytes for a list of one attribute (it uses 48)."""


def create(
    path: str, line: str, env: "Mapping[str, str]", job: int
) -> windows_api.ProcessInformation:
    """Create a suspended process that is in the job from its start (Windows 10), so that a
    supervisor that is killed at this point leaves nothing behind. Raises OSError."""
    startup, created = _startup_info(), windows_api.ProcessInformation()
    attributes, size = ctypes.create_string_buffer(_ATTRIBUTES), windows_api.SIZE(_ATTRIBUTES)
    jobs = (windows_api.HANDLE * 1)(job)
    calls.InitializeProcThreadAttributeList(attributes, 1, 0, ctypes.byref(size))
    try:
        calls.UpdateProcThreadAttribute(
            attributes,
            0,
            windows_api.PROC_THREAD_ATTRIBUTE_JOB_LIST,
            jobs,
            ctypes.sizeof(jobs),
            None,
            None,
        )
        startup.lpAttributeList = ctypes.addressof(attributes)
    except OSError:
        pass  # Windows 8.1: `enter` assigns it
    flags = (
        windows_api.CREATE_SUSPENDED
        | windows_api.CREATE_UNICODE_ENVIRONMENT
        | windows_api.EXTENDED_STARTUPINFO_PRESENT
    )
    # The command inherits all inheritable handles, as without sandrun; ours are not inheritable.
    inherit, here = True, None
    try:
        calls.CreateProcessW(
            *(path, ctypes.create_unicode_buffer(line), None, None, inherit, flags),
            *(_block(env), here, ctypes.byref(startup), ctypes.byref(created)),
        )
    finally:
        calls.DeleteProcThreadAttributeList(attributes)
    return created


def _startup_info() -> windows_api.StartupInfoEx:
    """The start-up information, with our own standard handles."""
    startup = windows_api.StartupInfoEx()
    startup.StartupInfo.cb = ctypes.sizeof(startup)
    startup.StartupInfo.dwFlags = windows_api.STARTF_USESTDHANDLES
    startup.StartupInfo.hStdInput = calls.GetStdHandle(windows_api.STD_INPUT_HANDLE)
    startup.StartupInfo.hStdOutput = calls.GetStdHandle(windows_api.STD_OUTPUT_HANDLE)
    startup.StartupInfo.hStdError = calls.GetStdHandle(windows_api.STD_ERROR_HANDLE)
    return startup


def _block(env: "Mapping[str, str]") -> "ctypes.Array[ctypes.c_wchar]":
    """An environment for CreateProcess: sorted, each entry terminated by a NUL, then one more NUL
    (the buffer's own)."""
    entries = sorted((f"{name}={value}\0" for name, value in env.items()), key=str.upper)
    return ctypes.create_unicode_buffer("".join(entries) or "\0")


def enter(process: int, job: int) -> None:
    """Ensure that the suspended process is in the job. Raises OSError."""
    inside = windows_api.BOOL()
    calls.IsProcessInJob(process, job, ctypes.byref(inside))
    if not inside.value:
        calls.AssignProcessToJobObject(job, process)

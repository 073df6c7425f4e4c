"""The calls of Windows that sandrun makes: fixed-width types, structures, one table of prototypes.

Promises
- Every call goes through `PROTOTYPES`, which has the argument types, the result type, and which
  result is a failure (`sandrun.platform.windows_calling` raises OSError then).
- No type depends on the operating system (`wintypes.DWORD` has 8 bytes on Linux, `c_wchar` 2 or
  4), so this can be imported anywhere: tests/windows/layout.py compares each structure with the
  compiler's, and a fake in the tests implements the same prototypes.
- With `use_last_error`, the interpreter cannot change a call's error number before it is read.

A new call needs one line in the table; a new structure a class here and a line in `HEADERS`.
Source: the Windows SDK's headers, as mingw-w64 has them.
"""

import ctypes
import sys

from sandrun.platform.windows_calling import FAILED, INVALID, NEVER, ZERO, Calls, Prototype

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

BOOL = ctypes.c_int32
DWORD = ctypes.c_uint32
WORD = ctypes.c_uint16
LARGE = ctypes.c_int64
SIZE = ctypes.c_size_t
HANDLE = ctypes.c_void_p
POINTER = ctypes.c_void_p
TEXT = ctypes.c_wchar_p

INFINITE = 0xFFFFFFFF

# --- structures --------------------------------------------------------------------------------


class JobBasicLimits(ctypes.Structure):
    """JOBOBJECT_BASIC_LIMIT_INFORMATION; times in 100 ns."""

    _fields_ = (
        ("PerProcessUserTimeLimit", LARGE),
        ("PerJobUserTimeLimit", LARGE),
        ("LimitFlags", DWORD),
        ("MinimumWorkingSetSize", SIZE),
        ("MaximumWorkingSetSize", SIZE),
        ("ActiveProcessLimit", DWORD),
        ("Affinity", SIZE),
        ("PriorityClass", DWORD),
        ("SchedulingClass", DWORD),
    )


class IoCounters(ctypes.Structure):
    """IO_COUNTERS."""

    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in (
            *("ReadOperationCount", "WriteOperationCount", "OtherOperationCount"),
            *("ReadTransferCount", "WriteTransferCount", "OtherTransferCount"),
        )
    )


class JobLimits(ctypes.Structure):
    """JOBOBJECT_EXTENDED_LIMIT_INFORMATION; memory is commit, in bytes."""

    _fields_ = (
        ("BasicLimitInformation", JobBasicLimits),
        ("IoInfo", IoCounters),
        ("ProcessMemoryLimit", SIZE),
        ("JobMemoryLimit", SIZE),
        ("PeakProcessMemoryUsed", SIZE),
        ("PeakJobMemoryUsed", SIZE),
    )


class JobAccounting(ctypes.Structure):
    """JOBOBJECT_BASIC_ACCOUNTING_INFORMATION; times in 100 ns, exited processes included."""

    _fields_ = (
        ("TotalUserTime", LARGE),
        ("TotalKernelTime", LARGE),
        ("ThisPeriodTotalUserTime", LARGE),
        ("ThisPeriodTotalKernelTime", LARGE),
        ("TotalPageFaultCount", DWORD),
        ("TotalProcesses", DWORD),
        ("ActiveProcesses", DWORD),
        ("TotalTerminatedProcesses", DWORD),
    )


class JobCpuRate(ctypes.Structure):
    """JOBOBJECT_CPU_RATE_CONTROL_INFORMATION; the rate in 1/100 % of all processors."""

    _fields_ = (("ControlFlags", DWORD), ("CpuRate", DWORD))


class JobPort(ctypes.Structure):
    """JOBOBJECT_ASSOCIATE_COMPLETION_PORT."""

    _fields_ = (("CompletionKey", POINTER), ("CompletionPort", HANDLE))


def pid_list(room: int) -> "Any":
    """A JOBOBJECT_BASIC_PROCESS_ID_LIST with room for `room` pids."""

    class JobPids(ctypes.Structure):
        NumberOfAssignedProcesses: int
        NumberOfProcessIdsInList: int
        _fields_ = (
            ("NumberOfAssignedProcesses", DWORD),
            ("NumberOfProcessIdsInList", DWORD),
            ("ProcessIdList", SIZE * room),
        )

    return JobPids()


class Overlapped(ctypes.Structure):
    """OVERLAPPED."""

    _fields_ = (
        ("Internal", SIZE),
        ("InternalHigh", SIZE),
        ("Offset", DWORD),
        ("OffsetHigh", DWORD),
        ("hEvent", HANDLE),
    )


class StartupInfo(ctypes.Structure):
    """STARTUPINFOW."""

    _fields_ = (
        ("cb", DWORD),
        ("lpReserved", POINTER),
        ("lpDesktop", POINTER),
        ("lpTitle", POINTER),
        *((f"dw{name}", DWORD) for name in ("X", "Y", "XSize", "YSize")),
        *((f"dw{name}", DWORD) for name in ("XCountChars", "YCountChars", "FillAttribute")),
        ("dwFlags", DWORD),
        ("wShowWindow", WORD),
        ("cbReserved2", WORD),
        ("lpReserved2", POINTER),
        ("hStdInput", HANDLE),
        ("hStdOutput", HANDLE),
        ("hStdError", HANDLE),
    )


class StartupInfoEx(ctypes.Structure):
    """STARTUPINFOEXW."""

    _fields_ = (("StartupInfo", StartupInfo), ("lpAttributeList", POINTER))


class MemoryStatus(ctypes.Structure):
    """MEMORYSTATUSEX; sizes in bytes."""

    _fields_ = (
        ("dwLength", DWORD),
        ("dwMemoryLoad", DWORD),
        *((f"ull{kind}Phys", ctypes.c_uint64) for kind in ("Total", "Avail")),
        *((f"ull{kind}PageFile", ctypes.c_uint64) for kind in ("Total", "Avail")),
        *((f"ull{kind}Virtual", ctypes.c_uint64) for kind in ("Total", "Avail")),
        ("ullAvailExtendedVirtual", ctypes.c_uint64),
    )


class ProcessInformation(ctypes.Structure):
    """PROCESS_INFORMATION."""

    _fields_ = (
        ("hProcess", HANDLE),
        ("hThread", HANDLE),
        ("dwProcessId", DWORD),
        ("dwThreadId", DWORD),
    )


HEADERS: "dict[type[ctypes.Structure], str]" = {
    JobBasicLimits: "JOBOBJECT_BASIC_LIMIT_INFORMATION",
    IoCounters: "IO_COUNTERS",
    JobLimits: "JOBOBJECT_EXTENDED_LIMIT_INFORMATION",
    JobAccounting: "JOBOBJECT_BASIC_ACCOUNTING_INFORMATION",
    JobCpuRate: "JOBOBJECT_CPU_RATE_CONTROL_INFORMATION",
    JobPort: "JOBOBJECT_ASSOCIATE_COMPLETION_PORT",
    Overlapped: "OVERLAPPED",
    StartupInfo: "STARTUPINFOW",
    StartupInfoEx: "STARTUPINFOEXW",
    ProcessInformation: "PROCESS_INFORMATION",
    MemoryStatus: "MEMORYSTATUSEX",
}
"""The name that <windows.h> gives each structure."""

# --- constants, by the names of <winnt.h> and <winbase.h> --------------------------------------

JOB_OBJECT_LIMIT_JOB_TIME = 0x4
JOB_OBJECT_LIMIT_ACTIVE_PROCESS = 0x8
JOB_OBJECT_LIMIT_JOB_MEMORY = 0x200
JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE = 0x2000
JOB_OBJECT_CPU_RATE_CONTROL_ENABLE = 0x1
JOB_OBJECT_CPU_RATE_CONTROL_HARD_CAP = 0x4
JOB_OBJECT_SET_ATTRIBUTES = 0x2
JOB_OBJECT_QUERY = 0x4
JOB_OBJECT_TERMINATE = 0x8

JobObjectBasicAccountingInformation = 1
JobObjectBasicProcessIdList = 3
JobObjectAssociateCompletionPortInformation = 7
JobObjectExtendedLimitInformation = 9
JobObjectCpuRateControlInformation = 15

JOB_OBJECT_MSG_ACTIVE_PROCESS_LIMIT = 3
JOB_OBJECT_MSG_ACTIVE_PROCESS_ZERO = 4
JOB_OBJECT_MSG_NEW_PROCESS = 6
JOB_OBJECT_MSG_EXIT_PROCESS = 7
JOB_OBJECT_MSG_ABNORMAL_EXIT_PROCESS = 8
JOB_OBJECT_MSG_PROCESS_MEMORY_LIMIT = 9
JOB_OBJECT_MSG_JOB_MEMORY_LIMIT = 10

CREATE_SUSPENDED = 0x4
CREATE_UNICODE_ENVIRONMENT = 0x400
EXTENDED_STARTUPINFO_PRESENT = 0x80000
STARTF_USESTDHANDLES = 0x100
PROC_THREAD_ATTRIBUTE_JOB_LIST = 0x2000D
STD_INPUT_HANDLE = 0xFFFFFFF6
STD_OUTPUT_HANDLE = 0xFFFFFFF5
STD_ERROR_HANDLE = 0xFFFFFFF4
SYNCHRONIZE = 0x100000
PROCESS_QUERY_INFORMATION = 0x400
PROCESS_QUERY_LIMITED_INFORMATION = 0x1000

GENERIC_READ = 0x80000000
GENERIC_WRITE = 0x40000000
DELETE = 0x10000
FILE_APPEND_DATA = 0x4
FILE_SHARE_READ = 0x1
FILE_SHARE_WRITE = 0x2
FILE_SHARE_DELETE = 0x4
CREATE_NEW = 1
OPEN_EXISTING = 3
OPEN_ALWAYS = 4
FILE_FLAG_OPEN_REPARSE_POINT = 0x200000
LOCKFILE_FAIL_IMMEDIATELY = 0x1
LOCKFILE_EXCLUSIVE_LOCK = 0x2
EVENT_MODIFY_STATE = 0x2
PROCESS_TERMINATE = 0x1
CTRL_C_EVENT = 0
CTRL_BREAK_EVENT = 1
CTRL_CLOSE_EVENT = 2

ERROR_FILE_NOT_FOUND = 2
ERROR_ACCESS_DENIED = 5
ERROR_LOCK_VIOLATION = 33
ERROR_ALREADY_EXISTS = 183
ERROR_MORE_DATA = 234

# --- the table ---------------------------------------------------------------------------------


def _kernel32(result: "Any", failure: str, *arguments: "Any") -> Prototype:
    return Prototype("kernel32", result, failure, *arguments)


PROTOTYPES: "dict[str, Prototype]" = {
    # handles
    "CloseHandle": _kernel32(BOOL, ZERO, HANDLE),
    "GetStdHandle": _kernel32(HANDLE, NEVER, DWORD),
    "WaitForSingleObject": _kernel32(DWORD, FAILED, HANDLE, DWORD),
    "WaitForMultipleObjects": _kernel32(DWORD, FAILED, DWORD, POINTER, BOOL, DWORD),
    "CreateEventW": _kernel32(HANDLE, ZERO, POINTER, BOOL, BOOL, TEXT),
    "SetEvent": _kernel32(BOOL, ZERO, HANDLE),
    "OpenEventW": _kernel32(HANDLE, ZERO, DWORD, BOOL, TEXT),
    # files and their locks
    "CreateFileW": _kernel32(HANDLE, INVALID, TEXT, DWORD, DWORD, POINTER, DWORD, DWORD, HANDLE),
    "ReadFile": _kernel32(BOOL, ZERO, HANDLE, POINTER, DWORD, POINTER, POINTER),
    "WriteFile": _kernel32(BOOL, ZERO, HANDLE, POINTER, DWORD, POINTER, POINTER),
    "SetFilePointerEx": _kernel32(BOOL, ZERO, HANDLE, LARGE, POINTER, DWORD),
    "SetEndOfFile": _kernel32(BOOL, ZERO, HANDLE),
    "LockFileEx": _kernel32(BOOL, ZERO, HANDLE, DWORD, DWORD, DWORD, DWORD, POINTER),
    "UnlockFileEx": _kernel32(BOOL, ZERO, HANDLE, DWORD, DWORD, DWORD, POINTER),
    # the host
    "GlobalMemoryStatusEx": _kernel32(BOOL, ZERO, POINTER),
    # the console
    "SetConsoleCtrlHandler": _kernel32(BOOL, ZERO, POINTER, BOOL),
    "GenerateConsoleCtrlEvent": _kernel32(BOOL, ZERO, DWORD, DWORD),
    "GetConsoleProcessList": _kernel32(DWORD, ZERO, POINTER, DWORD),
    # jobs
    "CreateJobObjectW": _kernel32(HANDLE, ZERO, POINTER, TEXT),
    "OpenJobObjectW": _kernel32(HANDLE, ZERO, DWORD, BOOL, TEXT),
    "AssignProcessToJobObject": _kernel32(BOOL, ZERO, HANDLE, HANDLE),
    "IsProcessInJob": _kernel32(BOOL, ZERO, HANDLE, HANDLE, POINTER),
    "SetInformationJobObject": _kernel32(BOOL, ZERO, HANDLE, ctypes.c_int32, POINTER, DWORD),
    "QueryInformationJobObject": _kernel32(
        BOOL, ZERO, HANDLE, ctypes.c_int32, POINTER, DWORD, POINTER
    ),
    "TerminateJobObject": _kernel32(BOOL, ZERO, HANDLE, DWORD),
    # completion ports
    "CreateIoCompletionPort": _kernel32(HANDLE, ZERO, HANDLE, HANDLE, SIZE, DWORD),
    "GetQueuedCompletionStatus": _kernel32(BOOL, ZERO, HANDLE, POINTER, POINTER, POINTER, DWORD),
    "PostQueuedCompletionStatus": _kernel32(BOOL, ZERO, HANDLE, DWORD, SIZE, POINTER),
    # processes
    "CreateProcessW": _kernel32(
        BOOL, ZERO, TEXT, POINTER, POINTER, POINTER, BOOL, DWORD, POINTER, TEXT, POINTER, POINTER
    ),
    "InitializeProcThreadAttributeList": _kernel32(BOOL, ZERO, POINTER, DWORD, DWORD, POINTER),
    "UpdateProcThreadAttribute": _kernel32(
        BOOL, ZERO, POINTER, DWORD, SIZE, POINTER, SIZE, POINTER, POINTER
    ),
    "DeleteProcThreadAttributeList": _kernel32(None, NEVER, POINTER),
    "OpenProcess": _kernel32(HANDLE, ZERO, DWORD, BOOL, DWORD),
    "ResumeThread": _kernel32(DWORD, FAILED, HANDLE),
    "GetCurrentProcess": _kernel32(HANDLE, NEVER),
    "GetProcessTimes": _kernel32(BOOL, ZERO, HANDLE, POINTER, POINTER, POINTER, POINTER),
    "GetExitCodeProcess": _kernel32(BOOL, ZERO, HANDLE, POINTER),
    "TerminateProcess": _kernel32(BOOL, ZERO, HANDLE, DWORD),
    # exists in Wine, not in Windows
    "wine_get_version": Prototype("ntdll", ctypes.c_char_p, NEVER),
}


def code(error: OSError) -> int:
    """The error number of a failed call (GetLastError); 0 if it has none."""
    return getattr(error, "winerror", None) or 0


if sys.platform == "win32":

    def _windows() -> Calls:
        libraries: dict[str, ctypes.WinDLL] = {}

        def find(library: str, name: str) -> "Any":
            if library not in libraries:
                libraries[library] = ctypes.WinDLL(library, use_last_error=True)
            return getattr(libraries[library], name)

        def error(name: str, number: int) -> OSError:
            return OSError(0, ctypes.FormatError(number).strip(), name, number)

        return Calls(PROTOTYPES, find, ctypes.get_last_error, error)

    calls = _windows()
else:

    def _nowhere(library: str, name: str) -> "Any":
        raise AttributeError(f"{library} has no {name}: this is not Windows")

    calls = Calls(PROTOTYPES, _nowhere, lambda: 0, lambda name, number: OSError(number, "", name))


def wine_version() -> str:
    """Wine's version, or '' on Windows itself. Wine accepts limits that it does not enforce."""
    try:
        return str(calls.wine_get_version().decode())
    except AttributeError:
        return ""

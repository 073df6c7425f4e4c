"""A FAKE of kernel32's jobs, ports, events and processes, for what Wine does not do and no Windows
is here to do: limits that strike, messages that get lost, a job list that is refused.

It answers `sandrun.platform.windows_api`'s own table: each call goes through a real ctypes function
of that prototype, so that a wrong number or type of argument fails, and it refuses whatever the
kernel would refuse: closed or mistaken handles, sizes that do not belong to the information class,
limits below what is there. It is never the only evidence: tests/windows/test_job.py runs the same
backend on Wine or Windows.
"""

import ctypes
import queue
import threading
from collections.abc import Callable
from typing import Any

from sandrun.platform import windows_api, windows_calling

_CLASSES = {
    windows_api.JobObjectBasicAccountingInformation: windows_api.JobAccounting,
    windows_api.JobObjectAssociateCompletionPortInformation: windows_api.JobPort,
    windows_api.JobObjectExtendedLimitInformation: windows_api.JobLimits,
    windows_api.JobObjectCpuRateControlInformation: windows_api.JobCpuRate,
}
INVALID_HANDLE, INVALID_PARAMETER, BAD_LENGTH, NOT_ENOUGH_QUOTA = 6, 87, 24, 1816
US = 1
"""The pid of the process that makes the calls."""


class Refused(OSError):
    """What a failed call raises; `winerror` as on Windows."""

    def __init__(self, name: str, number: int) -> None:
        super().__init__(number, f"error {number}", name)
        self.winerror = number


class Job:
    def __init__(self, name: str) -> None:
        self.name = name
        self.limits = windows_api.JobLimits()
        self.rate = windows_api.JobCpuRate()
        self.port: tuple[int, Port] | None = None
        self.members: list[Process] = []
        self.handles = 0
        self.ticks = 0

    def live(self) -> "list[Process]":
        return [process for process in self.members if process.alive]


class Process:
    def __init__(self, pid: int, jobs: "list[Job]") -> None:
        self.pid = pid
        self.jobs = jobs
        self.suspended = True
        self.ran_outside = False
        self.commit = 0
        self.code: int | None = None
        self.created: dict[str, Any] = {}

    @property
    def alive(self) -> bool:
        return self.code is None


class Thread:
    def __init__(self, process: Process) -> None:
        self.process = process


class Port:
    def __init__(self) -> None:
        self.packets: queue.SimpleQueue[tuple[int, int, int]] = queue.SimpleQueue()


class Fake:
    """The kernel. Tests make it do things: `start`, `exit`, `allocate`; `lose` drops messages,
    `late` holds those of empty jobs back for so many seconds; `forgetful` names
    what is taken and not kept of limits. `console` has the processes that
    are attached to ours, None: there is none; `pressed` what was sent to all of them."""

    def __init__(self) -> None:
        self.handles: dict[int, Any] = {0x10: "stdin", 0x14: "stdout", 0x18: "stderr"}
        self.processes: dict[int, Process] = {US: Process(US, [])}
        self.next = 0x100
        self.error = threading.local()
        self.lists = 0
        self.lose = False
        self.late = 0.0
        self.old = False
        self.forgetful: tuple[str, ...] = ()
        self.console: list[int] | None = None
        self.pressed: list[int] = []
        self.calls = windows_calling.Calls(
            windows_api.PROTOTYPES, self._find, self._last_error, Refused
        )
        self.broken: list[Exception] = []
        self.kept: dict[str, Any] = {}

    def _last_error(self) -> int:
        return int(getattr(self.error, "n", 0))

    def _find(self, library: str, name: str) -> "Any":
        """A ctypes function of the table's prototype that comes back to our method."""
        prototype = windows_api.PROTOTYPES[name]
        method: Callable[..., Any] = getattr(self, name)
        assert library == "kernel32"

        def answer(*arguments: "Any") -> "Any":
            self.error.n = 0
            try:
                value = method(*arguments)
            except Refused as refused:
                self.error.n = refused.winerror
                return (
                    windows_calling.INVALID_HANDLE
                    if prototype.failure == windows_calling.INVALID
                    else 0
                )
            except Exception as error:  # ctypes would only print it
                self.broken.append(error)
                return 0
            return 1 if value is None else value

        made = ctypes.CFUNCTYPE(prototype.result, *prototype.arguments)(answer)
        self.kept[name] = made
        return ctypes.cast(made, ctypes.CFUNCTYPE(prototype.result, *prototype.arguments))

    # --- handles

    def _open(self, thing: object) -> int:
        self.next += 4
        self.handles[self.next] = thing
        if isinstance(thing, Job):
            thing.handles += 1
        return self.next

    def _get(self, handle: "int | None", kind: type) -> "Any":
        thing = self.handles.get(handle or 0)
        if thing is None or not isinstance(thing, kind):
            raise Refused("", INVALID_HANDLE)
        return thing

    def CloseHandle(self, handle: int) -> None:
        thing = self._get(handle, object)
        del self.handles[handle]
        if isinstance(thing, Job):
            thing.handles -= 1
            flags = thing.limits.BasicLimitInformation.LimitFlags
            if not thing.handles and flags & windows_api.JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE:
                self._end(thing)

    def GetStdHandle(self, which: int) -> int:
        return {windows_api.STD_OUTPUT_HANDLE: 0x14, windows_api.STD_ERROR_HANDLE: 0x18}.get(
            which, 0
        )

    def CreateEventW(self, security: int, manual: int, state: int, name: str) -> int:
        return self._open(threading.Event())

    def SetEvent(self, handle: int) -> None:
        self._get(handle, threading.Event).set()

    # --- jobs

    def _named(self, name: str) -> "Job | None":
        jobs = [thing for thing in self.handles.values() if isinstance(thing, Job)]
        return next((job for job in jobs if job.name == name), None)

    def CreateJobObjectW(self, security: int, name: str) -> int:
        found = self._named(name)
        handle = self._open(found or Job(name))
        self.error.n = windows_api.ERROR_ALREADY_EXISTS if found else 0
        return handle

    def OpenJobObjectW(self, access: int, inherit: int, name: str) -> int:
        found = self._named(name)
        if not found:
            raise Refused("", windows_api.ERROR_FILE_NOT_FOUND)
        return self._open(found)

    def AssignProcessToJobObject(self, job: int, process: int) -> None:
        self._join(self._get(job, Job), self._get(process, Process))

    def _join(self, job: Job, process: Process) -> None:
        if not process.alive:
            raise Refused("", windows_api.ERROR_ACCESS_DENIED)
        basic = job.limits.BasicLimitInformation
        limited = basic.LimitFlags & windows_api.JOB_OBJECT_LIMIT_ACTIVE_PROCESS
        if limited and len(job.live()) >= basic.ActiveProcessLimit:
            self._tell(job, windows_api.JOB_OBJECT_MSG_ACTIVE_PROCESS_LIMIT, 0)
            raise Refused("", NOT_ENOUGH_QUOTA)
        job.members.append(process)
        process.jobs.append(job)
        self._tell(job, windows_api.JOB_OBJECT_MSG_NEW_PROCESS, process.pid)

    def IsProcessInJob(self, process: int, job: int, result: int) -> None:
        inside = self._get(job, Job) in self._get(process, Process).jobs
        windows_api.BOOL.from_address(result).value = inside

    def SetInformationJobObject(self, handle: int, kind: int, what: int, size: int) -> None:
        job = self._get(handle, Job)
        if size != ctypes.sizeof(_CLASSES[kind]):
            raise Refused("", BAD_LENGTH)
        given = _CLASSES[kind].from_buffer_copy(ctypes.string_at(what, size))
        capped = isinstance(given, windows_api.JobCpuRate) and given.ControlFlags
        if capped and not 1 <= given.CpuRate <= 10_000:
            raise Refused("", INVALID_PARAMETER)
        for name in self.forgetful:
            for part in (given, getattr(given, "BasicLimitInformation", None)):
                if hasattr(part, name):
                    setattr(part, name, 0)
        if isinstance(given, windows_api.JobPort):
            job.port = (given.CompletionKey, self._get(given.CompletionPort, Port))
        elif isinstance(given, windows_api.JobCpuRate):
            job.rate = given
        else:
            given.PeakJobMemoryUsed = job.limits.PeakJobMemoryUsed
            given.JobMemoryLimit -= given.JobMemoryLimit % 4096  # it counts in pages
            job.limits = given

    def QueryInformationJobObject(
        self, handle: int, kind: int, answer: int, size: int, length: int
    ) -> None:
        job = self._get(handle, Job)
        if kind == windows_api.JobObjectBasicProcessIdList:
            self._list(job, answer, size)
            return
        if size != ctypes.sizeof(_CLASSES[kind]):
            raise Refused("", BAD_LENGTH)
        accounting = windows_api.JobAccounting(
            TotalUserTime=job.ticks, ActiveProcesses=len(job.live())
        )
        what = {
            windows_api.JobObjectExtendedLimitInformation: job.limits,
            windows_api.JobObjectCpuRateControlInformation: job.rate,
        }.get(kind, accounting)
        ctypes.memmove(answer, ctypes.byref(what), size)

    def _list(self, job: Job, answer: int, size: int) -> None:
        pids = [process.pid for process in job.live()]
        room = (size - 8) // 8
        found = windows_api.pid_list(room)
        found.NumberOfAssignedProcesses = len(pids)
        found.NumberOfProcessIdsInList = min(len(pids), room)
        found.ProcessIdList[: len(pids[:room])] = pids[:room]
        ctypes.memmove(answer, ctypes.byref(found), size)
        if len(pids) > room:
            raise Refused("", windows_api.ERROR_MORE_DATA)

    def TerminateJobObject(self, handle: int, code: int) -> None:
        self._end(self._get(handle, Job), code)

    def _end(self, job: Job, code: int = 0) -> None:
        for process in job.live():
            self.exit(process.pid, code)

    # --- completion ports

    def CreateIoCompletionPort(self, file: int, port: int, key: int, threads: int) -> int:
        if file != windows_calling.INVALID_HANDLE or port:
            raise Refused("", INVALID_PARAMETER)
        return self._open(Port())

    def GetQueuedCompletionStatus(
        self, handle: int, number: int, key: int, value: int, milliseconds: int
    ) -> None:
        assert milliseconds == windows_api.INFINITE
        packet = self._get(handle, Port).packets.get()
        for kind, place, what in zip(
            (windows_api.DWORD, windows_api.SIZE, windows_api.SIZE),
            (number, key, value),
            packet,
            strict=True,
        ):
            kind.from_address(place).value = what

    def PostQueuedCompletionStatus(self, handle: int, number: int, key: int, value: int) -> None:
        self._get(handle, Port).packets.put((number, key, value or 0))

    def _tell(self, job: Job, number: int, pid: int) -> None:
        if job.port and not self.lose:
            key, port = job.port
            packet = (number, key or 0, pid)
            if self.late and number == windows_api.JOB_OBJECT_MSG_ACTIVE_PROCESS_ZERO:
                threading.Timer(self.late, port.packets.put, (packet,)).start()
            else:
                port.packets.put(packet)

    # --- the console

    def GetConsoleProcessList(self, place: int, room: int) -> int:
        if self.console is None:
            raise Refused("", INVALID_HANDLE)
        if len(self.console) <= room:
            pids = (windows_api.DWORD * len(self.console))(*self.console)
            ctypes.memmove(place, pids, ctypes.sizeof(pids))
        return len(self.console)

    def GenerateConsoleCtrlEvent(self, kind: int, group: int) -> None:
        if self.console is None:
            raise Refused("", INVALID_HANDLE)
        assert group == 0  # one of its own would be deaf to Ctrl-C
        self.pressed.append(kind)

    # --- processes

    def InitializeProcThreadAttributeList(
        self, place: int, count: int, flags: int, size: int
    ) -> None:
        if windows_api.SIZE.from_address(size).value < 48:
            raise Refused("", 122)
        self.lists += 1

    def UpdateProcThreadAttribute(
        self, place: int, flags: int, what: int, value: int, size: int, old: int, length: int
    ) -> None:
        if self.old or what != windows_api.PROC_THREAD_ATTRIBUTE_JOB_LIST or size != 8:
            raise Refused("", 50)
        windows_api.SIZE.from_address(place).value = windows_api.SIZE.from_address(value).value

    def DeleteProcThreadAttributeList(self, place: int) -> None:
        self.lists -= 1

    def CreateProcessW(
        self, path: str, line: int, security: int, thread: int, inherit: int, flags: int,
        environment: int, directory: str, startup: int, created: int,
    ) -> None:  # fmt: skip
        assert (
            flags & windows_api.CREATE_SUSPENDED and flags & windows_api.CREATE_UNICODE_ENVIRONMENT
        )
        given = windows_api.StartupInfoEx.from_address(startup)
        assert given.StartupInfo.cb == ctypes.sizeof(given)
        process = self.start(list(self.processes[US].jobs))
        if given.lpAttributeList:
            job = windows_api.SIZE.from_address(given.lpAttributeList).value
            self._join(self._get(job, Job), process)
        process.created = {
            "path": path,
            "line": ctypes.wstring_at(line),
            "environment": _entries(environment),
            "stdin": given.StartupInfo.hStdInput,
        }
        answer = windows_api.ProcessInformation.from_address(created)
        answer.hProcess, answer.hThread = self._open(process), self._open(Thread(process))
        answer.dwProcessId = process.pid

    def ResumeThread(self, handle: int) -> int:
        process = self._get(handle, Thread).process
        process.suspended = False
        process.ran_outside = not process.jobs
        return 1

    def OpenProcess(self, access: int, inherit: int, pid: int) -> int:
        if pid not in self.processes or not self.processes[pid].alive:
            raise Refused("", INVALID_PARAMETER)
        return self._open(self.processes[pid])

    def TerminateProcess(self, handle: int, code: int) -> None:
        self.exit(self._get(handle, Process).pid, code)

    # --- what tests make happen

    def start(self, jobs: "list[Job]") -> Process:
        """A process in these jobs, as a child of theirs would be."""
        process = Process(1000 + 4 * len(self.processes), [])
        self.processes[process.pid] = process
        for job in jobs:
            self._join(job, process)
        return process

    def exit(self, pid: int, code: int = 0) -> None:
        """The process ends."""
        process = self.processes[pid]
        process.code = code
        for job in reversed(process.jobs):
            self._tell(job, windows_api.JOB_OBJECT_MSG_EXIT_PROCESS, pid)
            if not job.live():
                # A job inside tells everyone around it as well.
                for around in process.jobs[: process.jobs.index(job) + 1]:
                    self._tell(around, windows_api.JOB_OBJECT_MSG_ACTIVE_PROCESS_ZERO, 0)

    def work(self, pid: int, seconds: float) -> None:
        """The process uses so much of a processor; a job whose time is over is ended."""
        for job in self.processes[pid].jobs:
            job.ticks += round(seconds * 1e7)
            basic = job.limits.BasicLimitInformation
            limited = basic.LimitFlags & windows_api.JOB_OBJECT_LIMIT_JOB_TIME
            if limited and job.ticks >= basic.PerJobUserTimeLimit:
                self._end(job, NOT_ENOUGH_QUOTA)

    def allocate(self, pid: int, size: int) -> bool:
        """The process commits memory; False: a job's limit was in the way, and that was told."""
        jobs = self.processes[pid].jobs
        for at, job in enumerate(jobs):
            flags = job.limits.BasicLimitInformation.LimitFlags
            limit = job.limits.JobMemoryLimit
            if (
                flags & windows_api.JOB_OBJECT_LIMIT_JOB_MEMORY
                and job.limits.PeakJobMemoryUsed + size > limit
            ):
                for told in jobs[: at + 1]:
                    self._tell(told, windows_api.JOB_OBJECT_MSG_JOB_MEMORY_LIMIT, pid)
                return False
        for job in jobs:
            job.limits.PeakJobMemoryUsed += size
        self.processes[pid].commit += size
        return True


def _entries(block: int) -> "list[str]":
    """The entries of an environment block, up to the empty one."""
    entries: list[str] = []
    width = ctypes.sizeof(ctypes.c_wchar)
    while entry := ctypes.wstring_at(block):
        entries.append(entry)
        block += (len(entry) + 1) * width
    return entries

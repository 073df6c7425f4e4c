"""Windows: one Job Object for each run.

Promises
- The command is created suspended inside the job and resumed only after a check that it is there.
  So no instruction runs outside, and no process can break away.
- The kernel ends the job when its last handle is closed, which only the supervisor has. However the
  supervisor ends, the kernel ends the tree.
- `sandrun.supervise.timeouts` limits CPU time by querying the job. If no sandrun can (it may be
  suspended), the kernel ends the tree one grace period later. The kernel counts user time only.
- Each limit is read back. Memory is a commit limit of the whole tree: an allocation beyond it fails
  and nothing is killed. The message about it sets `limit_hit` to `own`, and the supervisor ends the
  run as on Linux.
- `kill` returns when the job is empty by its completion port AND by its list of processes: until
  then files of terminated processes may still be open. `close` also waits for the port's message if
  the run ended by itself and no process was left.

Messages are no proof: the system may lose some, and it also sends those of nested jobs. So `poll`
finds out whose limit a message is about, and polls births, exits and peaks as well. Only a message
reports a failed allocation: if it is lost, the run ends by the command's own failure.

`sandrun.platform.windows_spawn` resolves the command. A job no longer limits I/O, and a CPU weight
cannot be combined with a CPU rate. Source: "Job Objects" and "Nested Jobs" in Microsoft's
documentation.
"""

import ctypes
import os
import time

from sandrun import messages
from sandrun.backends import sampler
from sandrun.backends.job_port import Port
from sandrun.model import Limits, Process, Unusable, Usage
from sandrun.platform import windows_api, windows_creation, windows_spawn
from sandrun.platform.windows_api import calls, code

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from sandrun.model import Escape
    from sandrun.platform import spawn
    from sandrun.types import BackendName, LimitHit

KILL_SECONDS = 5.0
"""Seconds after which a terminated process is considered unkillable."""
_LOST_SECONDS = 0.1
"""Seconds to wait for a message before the job is queried."""
_KILLED = 128 + 9
_TICK = 1e-7
"""Seconds per unit of the kernel's times."""
_PAGE = 4096
_ATTACH = (
    windows_api.JOB_OBJECT_QUERY
    | windows_api.JOB_OBJECT_TERMINATE
    | windows_api.JOB_OBJECT_SET_ATTRIBUTES
)
_UNSUPPORTED = frozenset(
    ("cpu_weight", "io_weight", "io_read_bps", "io_write_bps", "io_read_iops", "io_write_iops")
)
"""Settings that a job cannot limit."""
_MEMORY = (
    windows_api.JOB_OBJECT_MSG_JOB_MEMORY_LIMIT,
    windows_api.JOB_OBJECT_MSG_PROCESS_MEMORY_LIMIT,
)


def name_of(run_id: str) -> str:
    """The name of a run's job. It is global, so that sandrun finds it from every session."""
    return f"Global\\sandrun-{run_id}"


def contains(run_id: str, process: int) -> bool:
    """Whether the job of a run contains the process of that handle, directly or in a nested job."""
    inside = windows_api.BOOL()
    try:
        job = calls.OpenJobObjectW(windows_api.JOB_OBJECT_QUERY, False, name_of(run_id))
    except OSError:
        return False
    try:
        calls.IsProcessInJob(process, job, ctypes.byref(inside))
    finally:
        calls.CloseHandle(job)
    return bool(inside.value)


def _query(job: int, kind: int, answer: ctypes.Structure) -> None:
    calls.QueryInformationJobObject(job, kind, ctypes.byref(answer), ctypes.sizeof(answer), None)


def _set(job: int, kind: int, what: ctypes.Structure) -> None:
    calls.SetInformationJobObject(job, kind, ctypes.byref(what), ctypes.sizeof(what))


class JobContainer:
    """See `sandrun.backends.protocol.Container`. `port` is None in an attached container.

    `events` holds an event's handle instead of a descriptor; `process` is the command's handle.
    """

    def __init__(self, run_id: str, job: int, limits: Limits, port: "Port | None") -> None:
        self.token = self.run_id = run_id
        self.helpers: set[int] = set()
        self.mark = ""
        self.job = job
        self.limits = limits
        self.port = port
        self.process = 0
        self.is_settled = False
        self.events = (port.event if port else -1, 0)
        self.limit_hit: LimitHit = ""
        self.oom_events = 0
        self.escaped: dict[int, Escape] = {}
        self.current: int | None = None
        self.sampled = self.most_processes = 0
        self.sampler = sampler.Sampler(limits.memory)

    def spawn(
        self, argv: "list[str]", env: "Mapping[str, str]", caller: "spawn.CallerState"
    ) -> int:
        created = windows_creation.create(*windows_spawn.command_line(argv, env), env, self.job)
        try:
            windows_creation.enter(created.hProcess, self.job)
            calls.ResumeThread(created.hThread)
        except OSError:
            calls.TerminateProcess(created.hProcess, _KILLED)
            calls.CloseHandle(created.hProcess)
            raise
        finally:
            calls.CloseHandle(created.hThread)
        self.process = created.hProcess
        return int(created.dwProcessId)

    def poll(self) -> "float | None":
        for number, pid in self.port.read_messages() if self.port else ():
            if number in _MEMORY and self._is_ours(pid):
                self.limit_hit = "own"
        if self.limits.cpu_time and not self.limit_hit and self._is_cpu_time_used():
            self.limit_hit = "cpu-time"
        peak, limit = self._peak(), self.limits.memory
        # Usage is sampled while it grows, and at the limit, where no process was killed.
        memory = self.limit_hit == "own"
        if limit and (memory or peak > max(limit // 2, self.sampled + limit // 50)):
            self.sampled = peak
            self.current = sum(_commit(pid) for pid in self.live_pids())
            seen = self.sampler.sample(limit if memory else self.current, self.live_pids)
            self.sampler.keep(seen, False)
        return self.sampler.due(peak)

    def _is_ours(self, pid: int) -> bool:
        """Whether `pid` hit this job's limit, and not that of a nested run, whose own sandrun
        handles it. The limit with the least memory left was hit. The environment of `pid` names its
        runs."""
        import psutil

        try:
            runs = psutil.Process(pid).environ().get("SANDRUN_RUNS", "").split(";")
        except psutil.Error:
            # It is gone, so estimate: ending a run without reason is worse than not ending it.
            return self._peak() > self.limits.memory // 2
        ids = [run.rpartition("/")[2] for run in runs]
        inside = ids[ids.index(self.run_id) + 1 :] if self.run_id in ids else []
        own = self._room()
        return all(own <= _room_of(run_id) for run_id in inside)

    def _is_cpu_time_used(self) -> bool:
        """Whether the tree has used its CPU time. The kernel checks that only now and then, without
        a message."""
        return bool(self._times().TotalUserTime * _TICK >= self.limits.cpu_time)

    def _room(self) -> float:
        """The bytes left below this job's limit on committed memory."""
        limits = windows_api.JobLimits()
        if self.job:
            _query(self.job, windows_api.JobObjectExtendedLimitInformation, limits)
        if not limits.BasicLimitInformation.LimitFlags & windows_api.JOB_OBJECT_LIMIT_JOB_MEMORY:
            return float("inf")
        return float(limits.JobMemoryLimit - sum(map(_commit, self.live_pids())))

    def _peak(self) -> int:
        limits = windows_api.JobLimits()
        _query(self.job, windows_api.JobObjectExtendedLimitInformation, limits)
        return int(limits.PeakJobMemoryUsed)

    def _times(self) -> windows_api.JobAccounting:
        times = windows_api.JobAccounting()
        _query(self.job, windows_api.JobObjectBasicAccountingInformation, times)
        return times

    def usage(self) -> Usage:
        times = self._times()
        cpu = (times.TotalUserTime + times.TotalKernelTime) * _TICK
        usage = Usage(self.current, self._peak(), cpu)
        usage.most_tasks = self.most_processes or None
        return usage

    def sample(self) -> Usage:
        self.current = sum(map(_commit, self.live_pids()))
        processes = self._times().ActiveProcesses
        self.most_processes = max(self.most_processes, processes)
        usage = self.usage()
        usage.tasks = processes
        return usage

    def counters(self) -> "dict[str, int]":
        return {}

    def top_consumers(self) -> "list[Process]":
        return self.sampler.top_consumers()

    def live_pids(self) -> "list[int]":
        room = 64
        while self.job:
            found = windows_api.pid_list(room)
            try:
                _query(self.job, windows_api.JobObjectBasicProcessIdList, found)
                return list(found.ProcessIdList[: found.NumberOfProcessIdsInList])
            except OSError as error:
                if code(error) != windows_api.ERROR_MORE_DATA:
                    raise
            room = 2 * max(room, found.NumberOfAssignedProcesses)
        return []

    def is_too_large_to_signal(self) -> bool:
        return False  # a job is ended as a whole

    def kill(self) -> None:
        if not self.job:
            return
        deadline = time.monotonic() + KILL_SECONDS
        if self.port:
            self.port.wait_empty(0.0)  # forget an earlier message
        notified = not self.port or not self.live_pids()
        calls.TerminateJobObject(self.job, _KILLED)
        while (pids := self.live_pids()) or not notified:
            if pids and time.monotonic() > deadline:
                raise TimeoutError(pids)
            if self.port:
                notified |= self.port.wait_empty(_LOST_SECONDS) or not pids
            else:
                time.sleep(_LOST_SECONDS / 50)
        self.is_settled = True

    def release_processes(self) -> None:
        _set(self.job, windows_api.JobObjectExtendedLimitInformation, windows_api.JobLimits())
        if self.limits.cpus:
            _set(self.job, windows_api.JobObjectCpuRateControlInformation, windows_api.JobCpuRate())

    def close(self) -> None:
        if self.port:
            # The message that the job is empty has usually arrived; this waits if it was lost.
            if self.process and not self.is_settled and not self.live_pids():
                self.port.wait_empty(_LOST_SECONDS)
            self.port.close()
        for handle in (self.process, self.job):
            if handle:
                calls.CloseHandle(handle)
        self.port, self.process, self.job = None, 0, 0
        self.events = (-1, 0)


def _commit(pid: int) -> int:
    """The commit charge of one process in bytes; 0: it is gone."""
    import psutil

    try:
        return int(psutil.Process(pid).memory_info().vms)  # PagefileUsage
    except psutil.Error:
        return 0


def _room_of(run_id: str) -> float:
    found = JobBackend().attach(run_id, run_id)
    try:
        return found._room()
    finally:
        found.close()


def _set_limits(job: int, limits: Limits) -> None:
    """Set the limits and read them back. Raises OSError, Unusable."""
    wanted, found = windows_api.JobLimits(), windows_api.JobLimits()
    basic = wanted.BasicLimitInformation
    basic.LimitFlags = windows_api.JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE
    if limits.memory:
        basic.LimitFlags |= windows_api.JOB_OBJECT_LIMIT_JOB_MEMORY
        commit = limits.memory + max(0, limits.swap)
        wanted.JobMemoryLimit = commit - commit % _PAGE  # as the kernel rounds it
    if limits.pids > 0:
        basic.LimitFlags |= windows_api.JOB_OBJECT_LIMIT_ACTIVE_PROCESS
        basic.ActiveProcessLimit = limits.pids
    if limits.cpu_time:  # JOB_OBJECT_TERMINATE_AT_END_OF_JOB is the default action
        basic.LimitFlags |= windows_api.JOB_OBJECT_LIMIT_JOB_TIME
        basic.PerJobUserTimeLimit = round(limits.cpu_time / _TICK)
    _set(job, windows_api.JobObjectExtendedLimitInformation, wanted)
    _query(job, windows_api.JobObjectExtendedLimitInformation, found)
    accepted = _has_limits(wanted, found)
    if limits.cpus:
        accepted &= _set_cpu_rate(job, limits.cpus)
    if not accepted:
        if not windows_api.wine_version():
            raise Unusable("the job did not accept its limits")
        messages.warn("Wine accepts the limits of a job and enforces none of them")


def _set_cpu_rate(job: int, cpus: float) -> bool:
    """Set the job's CPU rate; return whether it was accepted. Raises OSError (Wine refuses it)."""
    flags = (
        windows_api.JOB_OBJECT_CPU_RATE_CONTROL_ENABLE
        | windows_api.JOB_OBJECT_CPU_RATE_CONTROL_HARD_CAP
    )
    rate = min(10_000, max(1, round(cpus / (os.cpu_count() or 1) * 10_000)))
    found = windows_api.JobCpuRate()
    _set(job, windows_api.JobObjectCpuRateControlInformation, windows_api.JobCpuRate(flags, rate))
    _query(job, windows_api.JobObjectCpuRateControlInformation, found)
    return bool(found.ControlFlags & flags == flags and found.CpuRate == rate)


def _has_limits(wanted: windows_api.JobLimits, found: windows_api.JobLimits) -> bool:
    """Whether the job has the wanted limits; limits that are not wanted are ignored."""
    basic, actual = wanted.BasicLimitInformation, found.BasicLimitInformation
    return bool(
        actual.LimitFlags & basic.LimitFlags == basic.LimitFlags
        and basic.ActiveProcessLimit in (0, actual.ActiveProcessLimit)
        and basic.PerJobUserTimeLimit in (0, actual.PerJobUserTimeLimit)
        and wanted.JobMemoryLimit in (0, found.JobMemoryLimit)
    )


class JobBackend:
    """See `sandrun.backends.protocol.Backend`."""

    name: "BackendName" = "job-object"

    def __init__(self) -> None:
        self.kernel = not windows_api.wine_version()

    def open(self, run_id: str, limits: Limits) -> JobContainer:
        unsupported = sorted(limits.set_by_user & _UNSUPPORTED)
        if unsupported:
            raise Unusable(f"a job does not limit {', '.join(unsupported)}")
        job = calls.CreateJobObjectW(None, name_of(run_id))
        try:
            if calls.last_error() == windows_api.ERROR_ALREADY_EXISTS:
                raise Unusable(f"another process has a job named {name_of(run_id)}")
            _set_limits(job, limits)
            return JobContainer(run_id, job, limits, Port(job))
        except BaseException:
            calls.CloseHandle(job)
            raise

    def attach(self, run_id: str, token: str) -> JobContainer:
        if token != run_id:
            raise Unusable(f"{token!r} is not the job of run {run_id}")
        try:
            job = calls.OpenJobObjectW(_ATTACH, False, name_of(run_id))
        except OSError:
            job = 0  # it is gone, or not ours to open: without its supervisor the kernel ends it
        return JobContainer(run_id, job, Limits(0), None)

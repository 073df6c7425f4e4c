"""The Job Object backend on a FAKE kernel32 (see its header): what only a fake can do."""

import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import psutil
import pytest

from sandrun.backends import job_object, job_port, sampler
from sandrun.model import MIB, Limits, Unusable
from sandrun.platform import spawn, windows_api, windows_creation, windows_processes, windows_spawn
from tests.windows.fake_kernel32 import US, Fake, Job

NO_CALLER = spawn.CallerState.__new__(spawn.CallerState)


def _limits(memory: int = 0, **more: object) -> Limits:
    limits = Limits(memory)
    for name, value in more.items():
        setattr(limits, name, value)
    return limits


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    kernel = Fake()
    for module in (job_object, job_port, windows_creation):
        monkeypatch.setattr(module, "calls", kernel.calls)
    monkeypatch.setattr(windows_api, "wine_version", lambda: "")  # even if these tests run there
    monkeypatch.setattr(
        windows_spawn, "command_line", lambda argv, env: (f"C:\\{argv[0]}.exe", " ".join(argv))
    )
    monkeypatch.setattr(psutil, "Process", lambda pid: _FakePsutilProcess(kernel, pid))
    monkeypatch.setattr(sampler, "processes", windows_processes)
    before = set(kernel.handles)
    yield kernel
    assert not kernel.broken
    assert not kernel.lists, "attribute lists were not given back"
    assert set(kernel.handles) == before, "handles were left open"


class _FakePsutilProcess:
    """psutil's view of a process of the fake."""

    def __init__(self, kernel: Fake, pid: int) -> None:
        if not kernel.processes[pid].alive:
            raise psutil.NoSuchProcess(pid)
        self.process = kernel.processes[pid]

    def environ(self) -> "dict[str, str]":
        runs = [job.name.rpartition("-")[2] for job in self.process.jobs]
        return {"SANDRUN_RUNS": ";".join(f"C:\\state/{run}" for run in runs)}

    def cmdline(self) -> list[str]:
        return ["make"]

    def name(self) -> str:
        return "make"

    def memory_info(self) -> SimpleNamespace:
        return SimpleNamespace(vms=self.process.commit)


Opener = Callable[..., job_object.JobContainer]


@pytest.fixture
def opened(fake: Fake) -> Iterator[Opener]:
    containers: list[job_object.JobContainer] = []

    def open_(run_id: str = "outer", limits: "Limits | None" = None) -> job_object.JobContainer:
        containers.append(job_object.JobBackend().open(run_id, limits or _limits(64 * MIB)))
        return containers[-1]

    yield open_
    for container in reversed(containers):
        container.close()


def _spawn(container: job_object.JobContainer, *words: str) -> int:
    return container.spawn(list(words) or ["make"], {"ü": "ß €", "A": ""}, NO_CALLER)


def _job(fake: Fake, container: job_object.JobContainer) -> Job:
    found = fake.handles[container.job]
    assert isinstance(found, Job)
    return found


def _wait_for_reader(fake: Fake, container: job_object.JobContainer) -> None:
    """Wait until the reader has read all messages posted so far; they arrive in order."""
    assert container.port
    seen = len(container.port._messages)
    fake.calls.PostQueuedCompletionStatus(container.port.handle, 0, 0, None)
    deadline = time.monotonic() + 10
    while (0, 0) not in container.port._messages[seen:]:
        assert time.monotonic() < deadline
        time.sleep(0.0005)


@pytest.mark.parametrize("old", [False, True], ids=["job list", "assigned"])
def test_the_command_is_inside_before_it_runs(fake: Fake, opened: Opener, old: bool) -> None:
    fake.old = old
    container = opened()
    process = fake.processes[_spawn(container, "make", "a b", "ü€")]
    assert process.created == {
        "path": "C:\\make.exe",
        "line": "make a b ü€",
        "environment": ["A=", "ü=ß €"],
        "stdin": None,
    }
    assert not process.suspended
    assert not process.ran_outside
    assert process.jobs == [_job(fake, container)]
    assert container.live_pids() == [process.pid]


def test_a_command_that_cannot_be_assigned_never_runs(fake: Fake, opened: Opener) -> None:
    fake.old = True
    container = opened(limits=_limits(pids=1))
    _spawn(container)
    with pytest.raises(OSError):
        _spawn(container)
    assert max(fake.processes.items())[1].suspended
    assert not max(fake.processes.items())[1].alive


def test_kill_ends_the_whole_tree_and_waits_for_it(fake: Fake, opened: Opener) -> None:
    container = opened()
    _spawn(container)
    for _ in range(200):
        fake.start([_job(fake, container)])
    assert len(container.live_pids()) == 201
    container.kill()
    assert container.live_pids() == []
    assert {p.code for p in fake.processes.values() if p.pid != US} == {137}


def test_kill_returns_when_the_message_is_lost(fake: Fake, opened: Opener) -> None:
    container = opened()
    _spawn(container)
    fake.lose = True
    container.kill()
    assert container.live_pids() == []


def test_an_earlier_message_does_not_end_the_wait(
    fake: Fake, opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    container = opened()
    fake.exit(_spawn(container))
    _wait_for_reader(fake, container)
    fake.start([_job(fake, container)])
    sent = threading.Event()

    def late(ended: Job, code: int = 0) -> None:
        def send() -> None:
            sent.set()
            fake._tell(ended, windows_api.JOB_OBJECT_MSG_ACTIVE_PROCESS_ZERO, 0)

        for process in ended.live():
            process.code = code
        threading.Timer(0.05, send).start()

    monkeypatch.setattr(job_object, "_LOST_SECONDS", 10.0)
    monkeypatch.setattr(fake, "_end", late)
    container.kill()
    assert sent.is_set()


def test_the_message_of_a_nested_job_does_not_end_the_wait(
    fake: Fake, opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_object, "KILL_SECONDS", 0.3)
    container = opened()
    pid = _spawn(container)
    with monkeypatch.context() as stubborn, pytest.raises(TimeoutError) as unkillable:
        stubborn.setattr(fake, "_end", lambda job, code: fake._tell(job, 4, 0))
        container.kill()
    assert unkillable.value.args == ([pid],)


def test_close_waits_for_the_message_if_the_run_ended_by_itself(
    fake: Fake, opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_object, "_LOST_SECONDS", 10.0)
    container = opened()
    pid = _spawn(container)
    fake.late = 0.05
    began = time.monotonic()  # before the delay starts
    fake.exit(pid)
    container.close()
    assert 0.05 <= time.monotonic() - began < 5


def test_close_returns_although_the_message_is_lost(fake: Fake, opened: Opener) -> None:
    container = opened()
    pid = _spawn(container)
    fake.lose = True
    fake.exit(pid)
    container.close()
    assert not fake.processes[pid].alive


@pytest.mark.parametrize("end", ["left", "killed", "not started"])
def test_close_does_not_wait_if_no_message_will_come(
    fake: Fake, opened: Opener, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    container = opened()
    if end != "not started":
        _spawn(container)
    if end == "left":
        container.release_processes()
    elif end == "killed":
        container.kill()
    assert container.port

    def wait_empty(seconds: float) -> bool:
        raise AssertionError("waited")

    monkeypatch.setattr(container.port, "wait_empty", wait_empty)
    container.close()


def test_the_tree_dies_with_the_supervisors_handle(fake: Fake, opened: Opener) -> None:
    container = opened()
    pid = _spawn(container)
    container.close()
    assert not fake.processes[pid].alive


def test_the_limit_is_hit_and_the_peak_is_the_kernels(fake: Fake, opened: Opener) -> None:
    container = opened()
    pid = _spawn(container)
    assert fake.allocate(pid, 40 * MIB)
    container.poll()
    assert str(container.limit_hit) == ""
    assert container.usage().current == 40 * MIB
    assert not fake.allocate(pid, 40 * MIB)
    _wait_for_reader(fake, container)
    assert fake.handles[container.events[0]].is_set()
    container.poll()
    assert container.limit_hit == "own"
    assert container.usage().peak == 40 * MIB
    assert [process.pid for process in container.top_consumers()] == [pid]


def test_the_process_of_one_large_allocation_is_named(fake: Fake, opened: Opener) -> None:
    container = opened(limits=_limits(64 * MIB + 5))
    pid = _spawn(container)
    assert not fake.allocate(pid, 1024 * MIB)
    _wait_for_reader(fake, container)
    container.poll()
    assert container.limit_hit == "own"
    assert [process.pid for process in container.top_consumers()] == [pid]


def test_processes_are_sampled_only_while_the_job_grows(
    fake: Fake, opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    container = opened()
    pid = _spawn(container)
    asked: list[int] = []

    def commit(pid: int) -> int:
        asked.append(pid)
        return 40 * MIB

    monkeypatch.setattr(job_object, "_commit", commit)
    for _ in range(3):
        container.poll()
    assert asked == []
    assert fake.allocate(pid, 40 * MIB)
    for _ in range(3):
        container.poll()
    assert asked == [pid]


@pytest.mark.parametrize(
    "outer_mib, inner_mib, limit_hit",
    [(1024, 64, ("", "own")), (96, 1024, ("own", ""))],
    ids=["inner", "outer"],
)
def test_whose_limit_was_hit(
    fake: Fake, opened: Opener, outer_mib: int, inner_mib: int, limit_hit: "tuple[str, str]"
) -> None:
    """A process of a nested run: both jobs get the message about the inner limit."""
    outer = opened("outer", _limits(outer_mib * MIB))
    _spawn(outer)
    inner = opened("inner", _limits(inner_mib * MIB))
    command = fake.start([_job(fake, outer), _job(fake, inner)])
    assert fake.allocate(command.pid, 40 * MIB)
    assert not fake.allocate(command.pid, 60 * MIB)
    for container in (outer, inner):
        _wait_for_reader(fake, container)
        container.poll()
    assert (outer.limit_hit, inner.limit_hit) == limit_hit


def test_for_an_exited_process_the_peak_decides_whose_limit_was_hit(
    fake: Fake, opened: Opener
) -> None:
    for size, limit_hit in ((20 * MIB, ""), (40 * MIB, "own")):
        container = opened(str(size))
        process = fake.start([_job(fake, container)])
        assert fake.allocate(process.pid, size)
        assert not fake.allocate(process.pid, 64 * MIB)
        fake.exit(process.pid)
        _wait_for_reader(fake, container)
        container.poll()
        assert container.limit_hit == limit_hit


def test_the_number_of_processes_is_limited(fake: Fake, opened: Opener) -> None:
    container = opened(limits=_limits(pids=3))
    _spawn(container)
    for _ in range(2):
        fake.start([_job(fake, container)])
    with pytest.raises(OSError) as refused:
        _spawn(container)
    assert refused.value.filename == "CreateProcessW"


def test_the_cpu_rate_is_a_hard_cap(
    fake: Fake, opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    container = opened(limits=_limits(cpus=1.5))
    rate = _job(fake, container).rate
    assert (rate.ControlFlags, rate.CpuRate) == (5, 3750)
    container.release_processes()
    assert _job(fake, container).rate.ControlFlags == 0
    assert _job(fake, container).limits.BasicLimitInformation.LimitFlags == 0


def test_cpu_time_includes_exited_processes(fake: Fake, opened: Opener) -> None:
    container = opened()
    _job(fake, container).ticks = 25_000_000
    assert container.usage().cpu == pytest.approx(2.5)


def test_the_kernel_ends_a_tree_far_over_its_cpu_time(fake: Fake, opened: Opener) -> None:
    container = opened(limits=_limits(64 * MIB, cpu_time=2.5))
    pid = _spawn(container)
    for seconds, limit_hit in ((2.0, ""), (1.0, "cpu-time")):
        fake.work(pid, seconds)
        container.poll()
        assert container.limit_hit == limit_hit
    assert not fake.processes[pid].alive
    container.release_processes()
    child = fake.start([_job(fake, container)])
    fake.work(child.pid, 1.0)
    assert child.alive


@pytest.mark.parametrize(
    "name", ["LimitFlags", "JobMemoryLimit", "ActiveProcessLimit", "PerJobUserTimeLimit", "CpuRate"]
)
def test_a_job_that_does_not_accept_its_limits_is_refused(fake: Fake, name: str) -> None:
    fake.forgetful = (name,)
    assert job_object.JobBackend().kernel
    with pytest.raises(Unusable, match="did not accept"):
        job_object.JobBackend().open("r", _limits(64 * MIB, pids=9, cpu_time=9.0, cpus=0.01))


def test_wine_does_not_count_as_a_kernel_that_enforces(
    fake: Fake,
    opened: Opener,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    fake.forgetful = ("LimitFlags", "JobMemoryLimit")
    monkeypatch.setattr(windows_api, "wine_version", lambda: "10.0")
    assert not job_object.JobBackend().kernel
    opened()
    assert "Wine accepts the limits of a job and enforces none" in capfd.readouterr().err


def test_an_existing_job_of_the_same_name_is_refused(opened: Opener) -> None:
    opened("r")
    with pytest.raises(Unusable, match="another process"):
        job_object.JobBackend().open("r", _limits())


def test_limits_that_no_job_has_are_refused(fake: Fake) -> None:
    with pytest.raises(Unusable, match="io_weight"):
        job_object.JobBackend().open("r", _limits(set_by_user=frozenset({"io_weight", "memory"})))


def test_the_container_of_a_dead_supervisor_is_killed_by_its_token(
    fake: Fake, opened: Opener
) -> None:
    container = opened()
    pid = _spawn(container)
    found = job_object.JobBackend().attach(container.run_id, container.token)
    assert found.live_pids() == [pid]
    found.kill()
    found.close()
    assert not fake.processes[pid].alive
    gone = job_object.JobBackend().attach("nobody", "nobody")
    assert gone.live_pids() == []
    gone.kill()
    gone.close()


def test_the_fake_has_the_functions_of_the_table(fake: Fake) -> None:
    """The fake functions have the parameters of the prototypes."""
    import ctypes

    with pytest.raises(TypeError):
        fake.calls.TerminateJobObject(1)
    with pytest.raises(ctypes.ArgumentError):
        fake.calls.OpenJobObjectW(windows_api.JOB_OBJECT_QUERY, False, b"bytes")
    with pytest.raises(OSError) as refused:
        fake.calls.CloseHandle(0xDEAD)
    assert refused.value.filename == "CloseHandle"

"""The Job Object backend with real processes, on Windows or on Wine.

What Wine accepts and does not do is a strict xfail there: on Windows the same test must pass, and
the day Wine learns it, it fails.
"""

import ctypes
import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from sandrun.backends import job_object
from sandrun.model import MIB, Limits
from sandrun.platform import windows_api
from sandrun.platform.windows_api import calls
from sandrun.platform.windows_spawn import CallerState
from tests.windows.box import ROOT, SCALE, alive, wait_for

IS_WINE = bool(windows_api.wine_version())
PYTHON = [sys.executable, "-I", "-S", "-c"]
NO_CALLER: Any = CallerState()
Opener = Callable[..., job_object.JobContainer]


@pytest.fixture(autouse=True)
def _windows_only() -> None:
    if sys.platform != "win32":
        pytest.skip("about Windows: runs inside vagrant/wine-lab")


def not_on_wine(what: str) -> pytest.MarkDecorator:
    return pytest.mark.xfail(IS_WINE, reason=f"Wine does not enforce {what}", strict=True)


def limits(memory: int = 0, **more: object) -> Limits:
    made = Limits(memory)
    for name, value in more.items():
        setattr(made, name, value)
    return made


@pytest.fixture
def opened() -> Iterator[Opener]:
    containers: list[job_object.JobContainer] = []

    def open_(wanted: "Limits | None" = None) -> job_object.JobContainer:
        run_id = os.urandom(4).hex()
        containers.append(job_object.JobBackend().open(run_id, wanted or limits(512 * MIB)))
        return containers[-1]

    yield open_
    for container in containers:
        container.kill()
        container.close()


def start(container: job_object.JobContainer, *argv: "str | Path", **env: str) -> int:
    words = [str(word) for word in argv]
    return container.spawn(words, {**os.environ, "PYTHONPATH": str(ROOT), **env}, NO_CALLER)


def ended(container: job_object.JobContainer, seconds: float = 30) -> int:
    """Wait for the command; its exit code."""
    code = windows_api.DWORD()
    waited = calls.WaitForSingleObject(container.process, int(seconds * SCALE * 1000))
    assert waited == 0, "the command did not end"
    calls.GetExitCodeProcess(container.process, ctypes.byref(code))
    return int(code.value)


def exists(run_id: str) -> bool:
    """Whether a run's job does: somebody has a handle, or a process is in it."""
    found = job_object.JobBackend().attach(run_id, run_id)
    there = bool(found.job)
    found.close()
    return there


TREE = """
import os, subprocess, sys, time
folder, depth = sys.argv[1], int(sys.argv[2])
held = open(os.path.join(folder, f"held-{depth}"), "w")
if depth:
    flags = subprocess.DETACHED_PROCESS | subprocess.CREATE_NEW_PROCESS_GROUP
    subprocess.Popen([sys.executable, "-I", "-S", "-c", sys.argv[3], folder, str(depth - 1),
                      sys.argv[3]], creationflags=flags)
with open(os.path.join(folder, f"pid-{depth}"), "w") as file:
    file.write(f"{os.getpid()}\\n")
while True:
    time.sleep(60)
"""


def tree(folder: Path, depth: int = 2) -> list[str]:
    """A command with children below children, detached, each holding a file open."""
    return [*PYTHON, TREE, str(folder), str(depth), TREE]


def tree_pids(folder: Path, depth: int = 2) -> list[int]:
    """Wait until the tree is up; its pids."""
    files = [folder / f"pid-{at}" for at in range(depth + 1)]
    wait_for(lambda: all(f.exists() and f.read_text().endswith("\n") for f in files), 30, "tree")
    return [int(file.read_text()) for file in files]


def test_the_first_instruction_runs_inside_and_cannot_leave(opened: Opener, tmp_path: Path) -> None:
    script = """
import subprocess, sys
from sandrun.backends import job_object
from sandrun.platform.windows_api import calls
with open(sys.argv[2], "w") as out:
    print(job_object.contains(sys.argv[1], calls.GetCurrentProcess()), file=out)
    try:
        child = [sys.executable, "-c", "import time; time.sleep(60)"]
        subprocess.Popen(child, creationflags=subprocess.CREATE_BREAKAWAY_FROM_JOB)
        print("away", file=out)
    except OSError as error:
        print(error.winerror, file=out)
"""
    container = opened()
    out = tmp_path / "out"
    pid = start(container, sys.executable, "-c", script, container.run_id, out)
    assert pid in container.live_pids()
    assert ended(container) == 0
    assert out.read_text().split() == ["True", str(windows_api.ERROR_ACCESS_DENIED)]


def test_kill_ends_the_whole_tree_and_frees_its_files(opened: Opener, tmp_path: Path) -> None:
    container = opened()
    start(container, *tree(tmp_path))
    pids = tree_pids(tmp_path)
    assert set(pids) <= set(container.live_pids())
    began = time.monotonic()
    container.kill()
    assert time.monotonic() - began < 2 * SCALE
    assert container.live_pids() == []
    assert not any(map(alive, pids))
    for depth in range(3):
        (tmp_path / f"held-{depth}").unlink()  # an open one could not be removed
    assert ended(container) == 137


SUPERVISOR = """
import os, sys, time
import sandrun
from sandrun.backends import job_object
from sandrun.model import Limits
from sandrun.platform import spawn
container = job_object.JobBackend().open(sys.argv[1], Limits(0))
container.spawn(sys.argv[2:], dict(os.environ), spawn.CallerState())
time.sleep(600)
"""


def supervisor(run_id: str, command: list[str]) -> "subprocess.Popen[bytes]":
    """Another process that opens a container and starts the command in it."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", SUPERVISOR, run_id, *command], env=env)


def test_the_tree_dies_with_its_supervisor(tmp_path: Path) -> None:
    process = supervisor(os.urandom(4).hex(), tree(tmp_path))
    pids = tree_pids(tmp_path)
    process.kill()
    wait_for(lambda: not any(map(alive, pids)), 1, "the tree is dead")
    process.wait()


def test_a_supervisor_killed_at_any_instant_leaves_nothing(tmp_path: Path) -> None:
    """Also between the birth of the command and its first instruction."""
    for at in range(12):
        folder = tmp_path / str(at)
        folder.mkdir()
        run_id = os.urandom(4).hex()
        process = supervisor(run_id, tree(folder, 0))
        time.sleep(0.02 * at * SCALE)
        process.kill()
        process.wait()
        wait_for(functools.partial(_gone, run_id), 5, "the job is gone")
    suspended = [p for p in psutil.process_iter() if str(tmp_path) in " ".join(_words(p))]
    assert suspended == []


def _gone(run_id: str) -> bool:
    return not exists(run_id)


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@pytest.mark.parametrize("code", [0, 1, 137, 259, 0xC0000005, 0xFFFFFFFF])
def test_exit_codes_have_32_bits(opened: Opener, code: int) -> None:
    container = opened()
    end = f"import ctypes; ctypes.WinDLL('kernel32').ExitProcess(ctypes.c_uint32({code}))"
    start(container, *PYTHON, end)
    assert ended(container) == code


def test_words_environment_and_directory_pass_through(
    opened: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "my dïr"
    folder.mkdir()
    monkeypatch.chdir(folder)
    words = ["a b", "ü€ 漢", "", 'q"uo"te', "back\\", 'b\\"', "%PATH%", "^&|<>", "\ttab", "*"]
    script = """
import json, os, sys
facts = [sys.argv[1:], os.environ["WÄRME"], os.environ.get("EMPTY"), os.getcwd()]
open("out", "w").write(json.dumps(facts))
"""
    import json

    container = opened()
    start(container, *PYTHON, script, *words, WÄRME="ß=€")
    assert ended(container) == 0
    assert json.loads((folder / "out").read_text()) == [words, "ß=€", None, str(folder)]


RUN = """
import ctypes, os, sys
import sandrun
from sandrun.backends import job_object
from sandrun.model import Limits
from sandrun.platform import spawn
from sandrun.platform.windows_api import calls, DWORD, INFINITE
container = job_object.JobBackend().open(os.urandom(4).hex(), Limits(0))
container.spawn(sys.argv[1:], dict(os.environ), spawn.CallerState())
calls.WaitForSingleObject(container.process, INFINITE)
code = DWORD()
calls.GetExitCodeProcess(container.process, ctypes.byref(code))
container.close()
sys.exit(code.value)
"""


def run_contained(*command: str, **options: Any) -> "subprocess.CompletedProcess[bytes]":
    """Run a command in a container of another process, with standard handles of our choice."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    argv = [sys.executable, "-c", RUN, *command]
    return subprocess.run(argv, env=env, timeout=60 * SCALE, check=False, **options)


def test_standard_handles_pass_through() -> None:
    script = "import sys; sys.stdout.write(sys.stdin.read()); sys.stderr.write('err'); sys.exit(7)"
    done = run_contained(*PYTHON, script, input=b"in", capture_output=True)
    assert (done.returncode, done.stdout) == (7, b"in")
    assert done.stderr.endswith(b"err")  # on Wine after a warning


def test_closed_standard_input_stays_closed() -> None:
    script = "import sys; print(sys.stdin is None or sys.stdin.read() == '')"
    outer = f"import os, sys; os.close(0); exec({RUN!r})"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", outer, *PYTHON, script],
        stdin=subprocess.PIPE,
        capture_output=True,
        env=env,
        timeout=60 * SCALE,
        check=False,
    )
    assert done.stdout.split() == [b"True"], done.stderr


def test_a_command_that_does_not_exist_or_is_no_program(opened: Opener, tmp_path: Path) -> None:
    container = opened()
    with pytest.raises(FileNotFoundError):
        start(container, "no-such-command")
    text = tmp_path / "text.exe"
    text.write_text("not a program")
    with pytest.raises(OSError) as refused:
        start(container, text)
    assert windows_api.code(refused.value) == 193  # ERROR_BAD_EXE_FORMAT
    assert container.live_pids() == []


def test_a_container_inside_is_part_of_the_outer_one(opened: Opener, tmp_path: Path) -> None:
    outer = opened()
    inner_id = os.urandom(4).hex()
    start(outer, sys.executable, "-c", SUPERVISOR, inner_id, *tree(tmp_path))
    pids = tree_pids(tmp_path)
    inner = job_object.JobBackend().attach(inner_id, inner_id)
    assert set(inner.live_pids()) == set(pids)
    assert set(pids) < set(outer.live_pids())
    inner.kill()
    inner.close()
    assert not any(map(alive, pids))
    assert len(outer.live_pids()) == 1
    outer.kill()
    assert outer.live_pids() == []


def test_killing_the_outer_one_kills_what_is_inside(opened: Opener, tmp_path: Path) -> None:
    outer = opened()
    start(outer, sys.executable, "-c", SUPERVISOR, os.urandom(4).hex(), *tree(tmp_path))
    pids = tree_pids(tmp_path)
    outer.kill()
    assert not any(map(alive, pids))


def test_what_is_left_goes_on_without_the_container(opened: Opener, tmp_path: Path) -> None:
    container = opened()
    start(container, *tree(tmp_path, 0))
    (pid,) = tree_pids(tmp_path, 0)
    container.release_processes()
    container.close()
    assert alive(pid)
    os.kill(pid, signal.SIGTERM)


def test_the_port_tells_of_births_and_ends(opened: Opener, tmp_path: Path) -> None:
    container = opened()
    assert container.port
    start(container, *tree(tmp_path, 1))
    pids = tree_pids(tmp_path, 1)
    seen: list[tuple[int, int]] = []

    def told(*wanted: "tuple[int, int]") -> bool:
        assert container.port
        seen.extend(container.port.read_messages())
        return set(wanted) <= set(seen)

    wait_for(
        lambda: told(*((windows_api.JOB_OBJECT_MSG_NEW_PROCESS, pid) for pid in pids)), 10, "births"
    )
    os.kill(pids[1], signal.SIGTERM)
    # Ended with an exit code of its own: Windows calls only some codes abnormal.
    wait_for(
        lambda: (
            told((windows_api.JOB_OBJECT_MSG_EXIT_PROCESS, pids[1]))
            or told((windows_api.JOB_OBJECT_MSG_ABNORMAL_EXIT_PROCESS, pids[1]))
        ),
        10,
        "the end",
    )
    os.kill(pids[0], signal.SIGTERM)
    wait_for(lambda: told((windows_api.JOB_OBJECT_MSG_ACTIVE_PROCESS_ZERO, 0)), 10, "it is empty")


@pytest.mark.parametrize("number", [9, 10])
def test_a_message_about_the_limit_wakes_and_is_recorded(
    opened: Opener, tmp_path: Path, number: int
) -> None:
    """The real reader; the message is the system's in form, posted by us."""
    container = opened()
    assert container.port
    start(container, *tree(tmp_path, 0), SANDRUN_RUNS=f"C:\\state/{container.run_id}")
    (pid,) = tree_pids(tmp_path, 0)
    container.poll()
    assert not str(container.limit_hit)
    while calls.WaitForSingleObject(container.events[0], 0) == 0:
        pass
    calls.PostQueuedCompletionStatus(container.port.handle, number, container.job, pid)
    assert calls.WaitForSingleObject(container.events[0], int(5000 * SCALE)) == 0
    container.poll()
    assert container.limit_hit == "own"


@not_on_wine("memory limits of jobs")
def test_an_allocation_beyond_the_limit_fails_and_is_told(opened: Opener) -> None:
    container = opened(limits(64 * MIB))
    start(container, *PYTHON, "b = bytearray(256 << 20)")
    assert ended(container) == 1  # MemoryError
    wait_for(lambda: container.poll() is not None and container.limit_hit, 5, "it is told")
    assert container.limit_hit == "own"
    assert 0 < (container.usage().peak or 0) <= 64 * MIB


@not_on_wine("the number of processes in a job")
def test_the_number_of_processes_is_limited(opened: Opener) -> None:
    container = opened(limits(pids=2))
    script = """
import subprocess, sys
sleep = [sys.executable, "-I", "-S", "-c", "import time; time.sleep(60)"]
subprocess.Popen(sleep)
try:
    subprocess.Popen(sleep)
except OSError as error:
    sys.exit(error.winerror % 256)
"""
    start(container, *PYTHON, script)
    assert ended(container) == 1816 % 256  # ERROR_NOT_ENOUGH_QUOTA


SPIN = "import time\nend = time.monotonic() + 2\nwhile time.monotonic() < end: pass"


@not_on_wine("a share of the processors")
def test_a_share_of_the_processors_holds(opened: Opener) -> None:
    container = opened(limits(cpus=0.3))
    start(container, *PYTHON, f"{SPIN}; import os; os._exit(int(time.process_time() * 100))")
    assert 20 < ended(container) < 120


@not_on_wine("the time of a job")
def test_the_kernel_ends_a_job_whose_time_is_over(opened: Opener) -> None:
    """Windows looks every few seconds; where nobody looks, the command ends by itself."""
    container = opened(limits(cpu_time=0.5))
    spin = SPIN.replace("+ 2", f"+ {2 if IS_WINE else 25}")
    start(container, *PYTHON, spin)
    assert ended(container) == 1816  # ERROR_NOT_ENOUGH_QUOTA
    container.poll()
    assert container.limit_hit == "cpu-time"


@not_on_wine("any accounting of jobs")
def test_the_kernel_measures_time_and_memory(opened: Opener) -> None:
    container = opened()
    start(container, *PYTHON, f"b = bytearray(64 << 20)\n{SPIN}")
    assert ended(container) == 0
    usage = container.usage()
    assert 1 < (usage.cpu or 0) < 2.5
    assert 64 * MIB < (usage.peak or 0) < 512 * MIB

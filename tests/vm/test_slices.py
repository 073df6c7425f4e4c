"""A run's slice of systemd: what systemd puts beside the run's scope is held and ended with it.

Runs in the laboratory, as root and as a plain user, on each of its releases:
vagrant/lab run [--suite trixie] [--user] -- pytest -m vm tests/vm/test_slices.py
"""

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sandrun.platform import processes
from tests.harness import SCALE

LAB = os.environ.get("SANDRUN_LAB", "")
ROOT = os.geteuid() == 0
MANAGER = [] if ROOT else ["--user"]
INSIDE = ["systemd-run", *MANAGER, "-q", "--scope", "--slice-inherit"]
"""Asks systemd for a scope beside the run's, as tmux does for each pane."""
HOLD = 'b = bytearray(b"x") * (int(sys.argv[1]) << 20)'
GROUPS = Path("/sys/fs/cgroup")

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(LAB != "v2", reason="about cgroup v2"),
]
as_root = pytest.mark.skipif(not ROOT, reason="about the system's units: runs as root")


def until(check: "Callable[[], object]", seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds * SCALE
    while not check():
        assert time.monotonic() < deadline, (units(), run_groups())
        time.sleep(0.05)


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: "pytest.MonkeyPatch") -> "Iterator[None]":
    """A state of its own for each test, and nothing left of its runs afterwards."""
    (tmp_path / "state").mkdir()
    monkeypatch.setenv("SANDRUN_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    yield
    until(cleaned)


def systemctl(*words: str) -> str:
    command = ["systemctl", *MANAGER, *words]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def units() -> "list[str]":
    """The slices and scopes of runs that are active or failed. (A scope of systemd-run that failed
    stays loaded without --collect, and with it its slice, which is inactive.)"""
    listed = systemctl("list-units", "--plain", "--no-legend", "*sandrun_*", "sandrun-*")
    names = [line.split()[0] for line in listed.splitlines()]
    return [name for name in names if re.search(r"sandrun[-_][0-9a-f]{8}\b", name)]


def run_groups() -> "list[str]":
    return [path for path, _, _ in os.walk(GROUPS) if re.search(r"sandrun[-_][0-9a-f]{8}", path)]


def cleaned() -> bool:
    """Whether nothing is left of any run. systemd does not notice that a scope is empty whose only
    process died on its way there: a later run removes such a unit."""
    if units() or run_groups():
        sandrun("--", "true")
    return not units() and not run_groups()


def sandrun(*args: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["sandrun", "--backend", "systemd", *args],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip


@contextlib.contextmanager
def started(*args: str) -> "Iterator[subprocess.Popen[str]]":
    with subprocess.Popen(
        ["sandrun", "--backend", "systemd", *args], stderr=subprocess.PIPE, text=True
    ) as run:
        try:
            yield run
        finally:
            run.kill()
            run.communicate()


def python(script: str, *args: str) -> "list[str]":
    return ["python3", "-c", f"import sys, time; {script}", *args]


def sleeper(file: Path) -> "list[str]":
    """A command that notes its number and stays, beside the scope."""
    return [*INSIDE, *stays(file)]


def stays(file: Path) -> "list[str]":
    return python(
        "import os; open(sys.argv[1] + '.new', 'w').write(str(os.getpid())); "
        "os.rename(sys.argv[1] + '.new', sys.argv[1]); os.execvp('sleep', ['sleep', '1000'])",
        str(file),
    )


def noted(file: Path) -> int:
    until(file.exists)
    return int(file.read_text())


def lives(pid: int) -> bool:
    return not processes.has_exited(pid)


def group_of(pid: int) -> Path:
    return GROUPS / Path(f"/proc/{pid}/cgroup").read_text().strip().removeprefix("0::/")


def test_what_is_beside_the_scope_is_under_the_limit_and_is_named() -> None:
    hold = python(f"{HOLD}; print('held', flush=True)", "200")
    done = sandrun("-m", "64M", "--", "sh", "-c", '"$@"; true', "sh", *INSIDE, *hold)
    assert done.returncode == 137, done.stderr
    assert "held" not in done.stdout
    assert "memory limit of 64.0 MiB reached" in done.stderr, done.stderr
    done = sandrun("-m", "400M", "--", *INSIDE, *hold)
    assert (done.returncode, done.stdout) == (0, "held\n"), done.stderr
    assert "left the run's container" not in done.stderr


def test_what_is_beside_and_what_is_in_the_scope_count_together() -> None:
    hold = python(f"{HOLD}; print('held', flush=True); time.sleep(1000)", "70")
    script = f'"$@" & shift {len(INSIDE)}; exec "$@"'
    done = sandrun("-m", "90M", "--timeout", "200", "--", "sh", "-c", script, "sh", *INSIDE, *hold)
    assert done.returncode == 137, done.stderr


@pytest.mark.parametrize("more", [[], ["--require", "kernel"]])
def test_what_is_beside_is_left_behind_and_ended(tmp_path: Path, more: "list[str]") -> None:
    file = tmp_path / "pid"
    script = f'"$@" </dev/null >/dev/null 2>&1 & until [ -e {file} ]; do sleep 0.1; done; exit 3'
    done = sandrun(*more, "--", "sh", "-c", script, "sh", *sleeper(file))
    assert done.returncode == 3, done.stderr
    assert "left the run's container" not in done.stderr
    assert f"sleep 1000 (pid {noted(file)}" in done.stderr
    assert not lives(noted(file))


def test_a_timeout_ends_what_is_beside(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    done = sandrun("--timeout", "5", "--", *sleeper(file))
    assert done.returncode == 124, done.stderr
    assert not lives(noted(file))


def test_kill_all_ends_what_is_beside(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    with started("--", *sleeper(file)) as run:
        pid = noted(file)
        subprocess.run(["sandrun", "kill", "--all"], check=True, capture_output=True)
        run.wait(20 * SCALE)
        assert not lives(pid)


def test_what_is_beside_dies_with_a_killed_supervisor(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    with started("--", "sh", "-c", '"$@"; sleep 1000', "sh", *sleeper(file)) as run:
        pid = noted(file)
        run.kill()
        until(lambda: not lives(pid))


def test_the_next_run_ends_what_is_beside_when_all_of_sandrun_was_killed(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    with started("--", *sleeper(file)) as run:
        beside = noted(file)
        scope = next(path for path in group_of(beside).parent.glob("sandrun-*.scope"))
        procs = scope / "sandrun.leaf/cgroup.procs"
        until(lambda: len(procs.read_text().split()) >= 3)  # two keepers and the witness
        run.send_signal(signal.SIGSTOP)  # who is stopped starts nobody anew
        helpers = list(map(int, procs.read_text().split()))
        for pid in helpers:
            os.kill(pid, signal.SIGSTOP)
        for pid in (*helpers, run.pid):
            os.kill(pid, signal.SIGKILL)
        run.wait()
        assert lives(beside)
        done = sandrun("--", "true")
        assert done.returncode == 0, done.stderr
        assert "cleaning up after run" in done.stderr
        assert not lives(beside)


def test_a_sandrun_that_is_killed_at_any_time_leaves_no_unit() -> None:
    took = time.monotonic()
    assert sandrun("--", "true").returncode == 0
    took = time.monotonic() - took
    for step in range(16):
        with started("--", *INSIDE, "sleep", "1000") as run:
            time.sleep(took * step / 10)
            run.kill()
    until(cleaned)


def test_a_neighbour_is_never_touched(tmp_path: Path) -> None:
    """In the slice where the run's is, in that of a run that is none, and one named nearly so."""
    file, pids = tmp_path / "inside", []
    with started("--", *sleeper(file)):
        around = group_of(noted(file)).parent.parent.name
    # Not a run's, but the name of one's slice; not a run's name.
    for name in (around, *(f"{around[:-6]}-sandrun_{end}.slice" for end in ("00c0ffee", "builds"))):
        note = tmp_path / name
        command = ["systemd-run", *MANAGER, "-q", "--collect", f"--slice={name}", *stays(note)]
        subprocess.run(command, check=True)
        pids.append(noted(note))
    try:
        for extra in (("--timeout", "3"), ("-m", "64M")):
            sandrun(*extra, "--", *INSIDE, *python(f"{HOLD}; time.sleep(1000)", "200"))
        with started("--", *sleeper(tmp_path / "other")) as run:
            noted(tmp_path / "other")
            run.kill()
        sandrun("--", "true")
        assert all(map(lives, pids))
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)


def test_a_run_in_a_run_beside_the_scope_is_in_both_slices(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    inner = ["sandrun", "--queue", "other", "--backend", "systemd", "-m", "400M", "--"]
    done = sandrun("-m", "300M", "--timeout", "8", "--", *INSIDE, *inner, *stays(file))
    assert done.returncode == 124, done.stderr
    assert not lives(noted(file))
    hold = python(HOLD, "200")
    done = sandrun("-m", "100M", "--pool", "off", "--", *INSIDE, *inner, *hold)
    assert done.returncode == 137, done.stderr
    inner[inner.index("400M")] = "64M"
    done = sandrun("-m", "400M", "--", *INSIDE, *inner, *hold)
    assert done.returncode == 137, done.stderr
    assert "64.0 MiB" in done.stderr
    assert "400.0 MiB" not in done.stderr  # it was no limit of the outer one


def limits_of(pid: int) -> "list[str]":
    """The files of limits, in the group of the process and in those above it that are a run's."""
    group, found = group_of(pid), set()
    while re.search("sandrun[-_][0-9a-f]{8}", str(group)):
        read = {}
        for name in ("memory.max", "memory.swap.max", "cpu.max", "pids.max"):
            with contextlib.suppress(OSError):  # systemd disables a controller that nothing needs
                read[str(group / name)] = (group / name).read_text().split()[0]
        # The scope has a TasksMax of systemd's own.
        found |= {name for name, value in read.items() if value in LIMITED}
        group = group.parent
    return sorted(found)


LIMITED = (str(64 << 20), str(96 << 20), "0", "50000", "50", "66")
"""By the limits of the test below, or by what the slice has more."""


def test_leftovers_that_may_stay_are_free_of_the_limits(tmp_path: Path) -> None:
    beside, inside = tmp_path / "beside", tmp_path / "inside"
    script = f"""setsid sleep 1000 >/dev/null 2>&1 & echo $! >{inside}
        "$@" </dev/null >/dev/null 2>&1 & until [ -e {beside} ]; do sleep 0.1; done"""
    limits = ["-m", "64M", "--pids", "50", "--cpus", "0.5", "--leftovers", "leave"]
    done = sandrun(*limits, "--", "sh", "-c", script, "sh", *sleeper(beside))
    assert done.returncode == 0, done.stderr
    for pid in (noted(beside), noted(inside)):
        assert lives(pid)
        until(lambda pid=pid: not limits_of(pid))  # type: ignore[misc]
        os.kill(pid, signal.SIGKILL)


def test_the_slice_has_the_limits(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    limits = ["-m", "64M", "--swap", "8M", "--pids", "40", "--cpus", "0.25", "--cpu-weight", "50"]
    with started(*limits, "--", *sleeper(file)):
        group = group_of(noted(file)).parent
        names = ("memory.max", "memory.swap.max", "pids.max", "cpu.max", "cpu.weight")
        took = [(group / name).read_text().strip() for name in names]
        # What sandrun itself needs comes on top.
        assert took == [str((64 + 32) << 20), str(8 << 20), "56", "25000 100000", "50"]


def test_what_is_beside_counts_for_time_and_peak(tmp_path: Path) -> None:
    busy = python("\nwhile True: pass")
    done = sandrun("--cpu-time", "2", "--timeout", "200", "--", *INSIDE, *busy)
    assert done.returncode == 124, done.stderr
    assert "CPU" in done.stderr or "cpu" in done.stderr, done.stderr
    hold = python(f"{HOLD}; time.sleep(3)", "80")
    done = sandrun("-m", "400M", "--", *INSIDE, *hold)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "sandrun/history.jsonl").read_text().splitlines()[-1])
    assert 80 << 20 <= record["peak"] < 120 << 20, record


@contextlib.contextmanager
def drop_in(text: str) -> "Iterator[None]":
    """A file of the administrator's for all slices below system.slice, where the runs are."""
    folder = Path("/run/systemd/system/system-.slice.d")
    folder.mkdir()
    (folder / "more.conf").write_text(text)
    systemctl("daemon-reload")
    try:
        yield
    finally:
        shutil.rmtree(folder)
        systemctl("daemon-reload")


@as_root
def test_limits_that_a_drop_in_overrides_are_set_again() -> None:
    script = f"cd {GROUPS}$(cut -c4- /proc/self/cgroup)/..; cat memory.max pids.max"
    with drop_in("[Slice]\nMemoryMax=infinity\nTasksMax=3333\n"):
        done = sandrun("-m", "64M", "--pids", "40", "--", *INSIDE, "sh", "-c", script)
        assert done.stdout.split() == [str(96 << 20), "56"], done.stderr


@as_root
def test_root_in_a_login_session_has_the_limit_on_processes(tmp_path: Path) -> None:
    """There systemd's own drop-in for user-.slice sets TasksMax."""
    file = tmp_path / "pid"
    script = (
        f"cd {tmp_path}; exec sandrun --backend systemd --pids 40 -- {shlex.join(sleeper(file))}"
    )
    env = {name: os.environ[name] for name in ("PATH", "SANDRUN_STATE_DIR", "XDG_STATE_HOME")}
    exports = "".join(f"export {name}={value}; " for name, value in env.items())
    # In a unit of its own without a session: PAM opens one of root's.
    command = ["systemd-run", "-q", "--scope", "--", "runuser", "-l", "root", "-c"]
    with subprocess.Popen([*command, exports + script], stderr=subprocess.PIPE) as run:
        group = group_of(noted(file)).parent
        assert "/user-0-sandrun_" in str(group)
        assert (group / "pids.max").read_text() == "56\n"
        name = group.name
        subprocess.run(["sandrun", "kill", "--all"], check=True, capture_output=True)
        run.communicate()
    until(lambda: not [path for path, _, _ in os.walk("/run/systemd") if name in path])


@as_root
def test_a_lower_limit_of_a_drop_in_is_none_of_the_runs() -> None:
    with drop_in("[Slice]\nMemoryMax=80M\nMemorySwapMax=0\n"):
        done = sandrun("-m", "300M", "--", *INSIDE, *python(f"{HOLD}; print('held')", "200"))
        assert done.returncode in (137, -9), (done.returncode, done.stderr)
        assert done.stdout == ""
        assert "memory limit of 300.0 MiB reached" not in done.stderr


@as_root
def test_without_a_slice_a_run_has_a_scope_as_before(tmp_path: Path) -> None:
    """What is beside that has left the container."""
    with drop_in("[Unit]\nAssertPathExists=/missing\n"):
        done = sandrun("-v", "-m", "64M", "--", "cat", "/proc/self/cgroup")
        assert re.fullmatch(r"0::/system.slice/sandrun-(\w+).scope/sandrun-\1/main\n", done.stdout)
        assert "no slice of the run's own" in done.stderr
        assert "backend systemd" in done.stderr
        file = tmp_path / "pid"
        done = sandrun("--timeout", "5", "--", *sleeper(file))
        assert done.returncode == 124, done.stderr
        assert "left the run's container" in done.stderr
        assert not lives(noted(file))
        assert "no slice of the run's own" in doctor()
    assert "no slice of the run's own" not in doctor()


def doctor() -> str:
    return subprocess.run(["sandrun", "doctor"], capture_output=True, text=True, check=False).stdout


def test_a_unit_that_starts_after_the_end_is_ended_too() -> None:
    """The service manager is asked at the very end, and answers later."""
    service = ["systemd-run", *MANAGER, "-q", "--collect", "--no-block", "--slice-inherit"]
    for _ in range(3):
        done = sandrun("--", *service, "sleep", "1000")
        assert done.returncode == 0, done.stderr
        until(cleaned)


def test_the_next_run_ends_what_started_in_the_slice_of_a_run_after_its_end(tmp_path: Path) -> None:
    """Such a slice still has limits, and no scope. (One that a run released has no limits.)"""
    place = sandrun("--", "cat", "/proc/self/cgroup").stdout
    name = re.sub(r"sandrun_[0-9a-f]{8}\.slice", "sandrun_0ddba11e.slice", place.split("/")[-4])
    note = tmp_path / "pid"
    command = ["systemd-run", *MANAGER, "-q", "--collect", f"--slice={name}", *stays(note)]
    subprocess.run(command, check=True)
    pid = noted(note)
    assert sandrun("--", "true").returncode == 0
    assert lives(pid)
    systemctl("set-property", "--runtime", name, "MemoryMax=100M")
    assert sandrun("--", "true").returncode == 0
    until(lambda: not lives(pid))


def test_a_run_inside_of_the_run_beside_its_scope_does_not_wait_for_it(tmp_path: Path) -> None:
    """A daemon in a unit beside the scope has no ancestor in the run, and nothing inherited of it:
    no environment, and no descriptor of the run lock."""
    env = {name: os.environ[name] for name in ("PATH", "SANDRUN_STATE_DIR")}
    inner = ["sandrun", "--no-wait", "--", "touch", "done"]
    daemon = f"import subprocess; subprocess.Popen({inner}, env={env}, start_new_session=True)"
    script = '"$@" && until [ -e done ]; do sleep 0.1; done'
    done = sandrun("--timeout", "60", "--", "sh", "-c", script, "sh", *INSIDE, *python(daemon))
    assert done.returncode == 0, done.stderr


def test_panes_of_tmux_stay_inside(tmp_path: Path) -> None:
    """A tmux with systemd asks its user's manager for a scope for each pane."""
    file = tmp_path / "pid"
    pane = shlex.join(stays(file))
    script = f"tmux -L {tmp_path.name} new-session -d {shlex.quote(pane)}; sleep 1000"
    done = sandrun("-m", "100M", "--timeout", "10", "--", "sh", "-c", script)
    assert done.returncode == 124, done.stderr
    assert "left the run's container" not in done.stderr
    assert not lives(noted(file))
    pane = shlex.join(python(f"{HOLD}; time.sleep(1000)", "300"))
    script = f"tmux -L {tmp_path.name} new-session -d {shlex.quote(pane)}; sleep 1000"
    done = sandrun("-m", "100M", "--timeout", "100", "--", "sh", "-c", script)
    assert done.returncode == 137, done.stderr


@as_root
@pytest.mark.parametrize("own", ["Type=exec", "Type=oneshot"])
def test_the_stop_of_the_unit_ends_what_is_beside_the_runs_scope(tmp_path: Path, own: str) -> None:
    file = tmp_path / "pid"
    name = "test-slice-stop"
    env = [f"--setenv={key}={os.environ[key]}" for key in ("PATH", "SANDRUN_STATE_DIR")]
    command = ["systemd-run", "-q", "--collect", "--no-block", f"--unit={name}", "-p", own, *env]
    script = 'sandrun --backend systemd -- "$@"; true'
    subprocess.run([*command, "sh", "-c", script, "sh", *sleeper(file)], check=True, cwd="/")
    pid = noted(file)
    systemctl("stop", f"{name}.service")
    until(lambda: not lives(pid))

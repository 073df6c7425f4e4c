"""The promises of every backend, with real processes and real limits."""

import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from sandrun.platform import processes
from tests.harness import ON_MACOS, SCALE, Box, alive, is_keeper, wait_for
from tests.integration.test_group_signals import FENCE, LISTEN, up, witnesses

MIB = 1 << 20
# Grows by 4 MiB a step and touches every page; prints a line if it is not stopped.
HOG = """
import sys, time
kept = []
for step in range(int(sys.argv[1]) // 4):
    kept.append(bytearray(b"x") * (4 << 20))
    time.sleep(float(sys.argv[2]))
print("survived")
"""
# A classic daemon: two forks, a new session, all descriptors closed; its pid is in a file.
DAEMON = """
import os, sys, time
if os.fork(): os._exit(0)
os.setsid()
if os.fork(): os._exit(0)
os.closerange(0, 256)
with open(sys.argv[1] + ".new", "w") as file: file.write(str(os.getpid()))
os.rename(sys.argv[1] + ".new", sys.argv[1])
time.sleep(1000)
"""


def hog(mib: int, pause: float = 0.005) -> list[str]:
    return [sys.executable, "-c", HOG, str(mib), str(pause)]


def daemon(place: Box, name: str = "daemon") -> "tuple[list[str], Path]":
    file = place.root / name
    return [sys.executable, "-c", DAEMON, str(file)], file


def pid_in(file: Path) -> int:
    wait_for(file.exists, 20, f"{file} is written")
    return int(file.read_text())


def nothing_left(place: Box) -> None:
    # A task leaves its group just before it is a zombie.
    wait_for(lambda: not place.leftovers(), 0.5, f"gone: {place.leftovers()}")


def groups_of(run: str) -> list[str]:
    """The groups of a run that exist in any hierarchy."""
    tree = os.walk("/sys/fs/cgroup")
    return [f"{top}/{name}" for top, names, _ in tree for name in names if name == f"sandrun-{run}"]


def test_the_exit_code_is_the_commands(place: Box) -> None:
    for code in (0, 3, 255):
        assert place.run("--", "sh", "-c", f"exit {code}").returncode == code
    assert place.run("--", "sh", "-c", "kill -TERM $$").returncode == 128 + signal.SIGTERM
    assert place.records()[-1]["backend"] == place.env["SANDRUN_BACKEND"]


def test_the_first_instruction_already_runs_inside(place: Box, backend: str) -> None:
    seen = place.run("--", "cat", "/proc/self/cgroup", "/proc/self/limits").stdout
    run = place.records()[-1]["id"]
    if backend == "rlimit":
        assert re.search(r"Max data size +[0-9]", seen)
    else:
        assert f"sandrun-{run}" in seen


def test_arguments_environment_and_input_pass_through(place: Box) -> None:
    words = ["a b", "ü€", "", "'\"", "new\nline", "-x"]
    script = 'for w; do printf "%s\\0" "$w"; done; printf "%s\\0" "$VALUE"; cat'
    run = place.start(
        "--", "sh", "-c", script, "sh", *words, env={"VALUE": "ß"}, stdin=subprocess.PIPE
    )
    assert place.finish(run, input="in").stdout.split("\0") == [*words, "ß", "in"]
    closed = place.run('exec "$@" <&-', "sh", *launch(place), "--", "sh", "-c", "cat", argv=SHELL)
    assert "Bad file descriptor" in closed.stderr


SHELL = ["sh", "-c"]


def launch(place: Box) -> list[str]:
    from tests.harness import launcher

    return launcher()


def test_the_tree_dies_at_the_limit_and_is_named(place: Box, backend: str) -> None:
    # At most 65 MB/s, so that even polling samples it between 50 and 100 %; less on a slow machine,
    # where polls, which may use 5 % of a core, are rarer.
    greedy = hog(600, 0.06 * SCALE)
    done = place.run("-m", "64M", "--", "sh", "-c", '"$@"; sleep 99; echo on', "sh", *greedy)
    assert done.returncode == 137
    assert done.stdout == ""
    assert "memory limit of 64.0 MiB reached" in done.stderr
    assert "allow more: --memory 128M" in done.stderr
    # From the last sample: a fast process grows between that and its end.
    assert re.search(rf"[3-9]\d(\.\d)? MiB +pid \d+ +{re.escape(sys.executable)}", done.stderr)
    assert len(re.findall(r"memory: .* of 64.0 MiB in use", done.stderr)) == 1
    record = place.records()[-1]
    assert record["reason"] == "memory"
    assert isinstance(record["peak"], int)
    if backend == "rlimit":
        assert "enforced by polling" in done.stderr
        assert record["peak"] < 64 * MIB * 2
    else:
        assert 60 * MIB < record["peak"] <= 64 * MIB  # the kernel's own figure: 0 pages over
    nothing_left(place)


def make_hog(place: Box) -> "list[str]":
    """A make whose target `out` is half-written when the limit is hit; at most 200 MB/s."""
    (place.root / "hog.py").write_text(HOG)
    (place.root / "Makefile").write_text(
        ".DELETE_ON_ERROR:\nout: ; echo half >$@; $(PYTHON) hog.py 600 0.02 >>$@\n"
    )
    return ["make", "-C", str(place.root), f"PYTHON={sys.executable}", "out"]


def test_at_the_limit_make_deletes_its_half_written_target(place: Box) -> None:
    """Otherwise the next make considers it done. The largest process is killed, make gets
    SIGTERM."""
    done = place.run("-m", "64M", "--", *make_hog(place))
    assert done.returncode == 137, done.stderr
    assert "memory limit of 64.0 MiB reached" in done.stderr
    assert not (place.root / "out").exists(), done.stderr
    nothing_left(place)


@pytest.mark.parametrize(
    "script",
    ['"$@" || true', '"$@"; exit 0', 'trap "exit 0" TERM; "$@"; exit 0', '"$@" & wait; exit 3'],
)
def test_a_run_that_hit_its_limit_always_exits_with_137(place: Box, script: str) -> None:
    done = place.run("-m", "64M", "--", "sh", "-c", script, "sh", *hog(600, 0.02))
    assert done.returncode == 137, done.stderr
    assert place.records()[-1]["reason"] == "memory"
    nothing_left(place)


def test_at_the_limit_the_other_processes_get_the_grace_to_clean_up(place: Box) -> None:
    file = place.root / "cleaned"
    script = f'trap "sleep 0.7; echo done >{file}; exit 0" TERM; "$@"; while :; do sleep 0.05; done'
    done = place.run("-m", "64M", "--grace", "60", "--", "sh", "-c", script, "sh", *hog(600, 0.02))
    assert done.returncode == 137, done.stderr
    assert file.read_text() == "done\n"
    nothing_left(place)


@pytest.mark.parametrize("together", [1, 3])
def test_a_run_that_hits_its_limit_again_is_killed_without_the_grace(
    place: Box, together: int
) -> None:
    """A parent that ignores SIGTERM and restarts its hogs."""
    start = '"$@" & ' * together
    script = f'trap "" TERM; while :; do {start} wait; done'
    words = ["sh", "-c", script, "sh", *hog(600, 0.02)]
    began = time.monotonic()
    done = place.run("-m", "64M", "--grace", "1000", "--", *words)
    assert done.returncode == 137, done.stderr
    assert time.monotonic() - began < 500
    nothing_left(place)


def test_processes_protected_from_the_oom_killer_are_ended_at_the_limit(place: Box) -> None:
    """A CI agent's OOMScoreAdjust=-1000 is inherited: then the kernel kills no process."""
    own = Path("/proc/self/oom_score_adj")
    try:
        before = own.read_text()
        own.write_text("-1000")
    except OSError:
        pytest.skip("needs CAP_SYS_RESOURCE")
    try:
        done = place.run("-m", "64M", "--", *make_hog(place))
    finally:
        own.write_text(before)
    assert done.returncode == 137, done.stderr
    assert place.records()[-1]["reason"] == "memory"
    assert not (place.root / "out").exists(), done.stderr
    nothing_left(place)


def test_the_limit_applies_to_the_tree_and_not_to_each_process(place: Box) -> None:
    script = 'for i in 1 2 3 4; do "$@" & done; wait'
    hold = "import time; kept = bytearray(b'x') * (40 << 20); time.sleep(1000)"
    words = ("sh", "-c", script, "sh", sys.executable, "-c", hold)
    done = place.run("-m", "96M", "--", *words)
    assert done.returncode == 137, done.stderr
    nothing_left(place)


def test_shared_memory_counts_exactly_once(place: Box) -> None:
    """Four processes that share 40 MiB use 40 and not 160; one that maps 200 passes 96."""
    script = """
import mmap, os, sys, time
size = int(sys.argv[1]) << 20
shared = mmap.mmap(-1, size)
for at in range(0, size, 4096): shared[at] = 1
for i in range(3):
    if not os.fork():
        sum(shared[at] for at in range(0, size, 4096)); time.sleep(0.3); os._exit(0)
for i in range(3): os.wait()
"""
    few = place.run("-m", "96M", "--", sys.executable, "-c", script, "40")
    assert few.returncode == 0, few.stderr
    many = place.run("-m", "96M", "--", sys.executable, "-c", script, "600")
    assert many.returncode == 137, many.stderr


# Shared memory, 4 MiB a step, of the same kind as memfd, SysV segments and files on tmpfs.
SHARER = """
import mmap, sys, time
shared = mmap.mmap(-1, int(sys.argv[1]) << 20)
for step in range(int(sys.argv[1]) // 4):
    shared.write(b"x" * (4 << 20))
    time.sleep(float(sys.argv[2]))
print("survived")
"""
UNITS = {"B": 1, "KiB": 1 << 10, "MiB": MIB}


@pytest.mark.parametrize("kind", ["anon", "shmem"])
def test_the_kinds_of_memory_are_reported(kernel_place: Box, kind: str) -> None:
    """Each byte counts once: the kernel also counts shared memory as page cache, sandrun does
    not."""
    script = HOG if kind == "anon" else SHARER
    done = kernel_place.run("-m", "96M", "--", sys.executable, "-c", script, "600", "0.005")
    assert done.returncode == 137, done.stderr
    reported = re.findall(r"\b(anon|file|shmem|kernel) ([\d.]+) (\w+)", done.stderr)
    kinds = {name: float(size) * UNITS[unit] for name, size, unit in reported}
    assert set(kinds) == {"anon", "file", "shmem", "kernel"}, done.stderr
    # From the last sample above half of the limit; the interpreter itself has some 10 MiB.
    assert kinds.pop(kind) > 32 * MIB, done.stderr
    assert max(kinds.values()) < 16 * MIB, done.stderr


def test_requested_swap_is_limited_or_refused(place: Box, backend: str) -> None:
    done = place.run("--swap", "8M", "--", "echo", "ran")
    if backend == "rlimit":
        assert (done.returncode, done.stdout) == (125, "")
        assert "only a kernel container limits swap" in done.stderr
        reported = place.run("-v", "--", "true").stderr
        assert ("swap is not forbidden" in reported) != ON_MACOS  # where footprints count it
    else:
        assert (done.returncode, done.stdout) == (0, "ran\n"), done.stderr


def test_a_daemon_is_ended_with_the_run_and_named(place: Box) -> None:
    command, file = daemon(place)
    done = place.run("--grace", "1", "--", *command, "--")
    pid = int(file.read_text()) if file.exists() else 0
    assert done.returncode == 0
    if pid:  # otherwise it was killed before it could write
        assert not alive(pid)
    nothing_left(place)


def test_a_daemon_that_ignores_sigterm_is_killed(place: Box) -> None:
    ready = place.root / "ready"
    script = 'trap "" TERM HUP; setsid sh -c "echo \\$\\$ > $0; while :; do sleep 1; done" & '
    script += 'while [ ! -s "$0" ]; do sleep 0.01; done'
    done = place.run("--grace", "0.2", "--", "sh", "-c", script, str(ready))
    assert done.returncode == 0
    assert "left behind" in done.stderr
    assert not alive(int(ready.read_text()))
    nothing_left(place)


def test_after_the_timeout_the_tree_gets_sigterm_then_sigkill(place: Box) -> None:
    script = 'trap "echo term" TERM; while :; do sleep 0.05; done'
    began = time.monotonic()
    done = place.run("--timeout", "0.5", "--grace", "0.5", "--", "sh", "-c", script)
    assert done.returncode == 124
    assert "term" in done.stdout
    assert "timeout: ended the run after 0.5 s" in done.stderr
    assert time.monotonic() - began < 10 * SCALE
    nothing_left(place)


def _tree(place: Box) -> "tuple[subprocess.Popen[str], list[int]]":
    """A run with children, a daemon and a process that ignores signals; return it and their
    pids."""
    command, file = daemon(place)
    stubborn = place.root / "stubborn"
    script = 'trap "" HUP INT TERM; "$@"; sh -c "echo \\$\\$ >$0; while :; do sleep 1; done"'
    run = place.start("--", "sh", "-c", script, str(stubborn), *command, new_session=True)
    wait_for(lambda: stubborn.exists() and stubborn.read_text(), 30, "the tree is up")
    return run, [pid_in(file), int(stubborn.read_text())]


def _keeper(supervisor: int) -> int:
    return next(filter(is_keeper, processes.descendants(supervisor)))


def test_after_sigkill_of_the_supervisor_nothing_lives(place: Box, backend: str) -> None:
    run, pids = _tree(place)
    keeper = _keeper(run.pid)
    os.kill(run.pid, signal.SIGKILL)
    killed = time.monotonic()
    wait_for(lambda: not any(map(alive, pids)), 1 if backend != "rlimit" else 3, "the tree is dead")
    took = time.monotonic() - killed
    run.wait()
    wait_for(lambda: not alive(keeper), 5, "the keeper ends")
    nothing_left(place)
    assert took < 5 * SCALE
    assert place.records()[-1]["reason"] == "lost"
    assert place.run("--", "true").returncode == 0


def test_after_sigkill_of_the_whole_process_group_nothing_lives(place: Box, backend: str) -> None:
    run, pids = _tree(place)
    os.killpg(run.pid, signal.SIGKILL)
    wait_for(lambda: not any(map(alive, pids)), 1 if backend != "rlimit" else 3, "the tree is dead")
    assert place.run("--", "true").returncode == 0


def _keepers() -> "list[int]":
    """Every keeper below this test, also orphans: the test process is a subreaper."""
    return [p for p in processes.descendants(os.getpid()) if alive(p) and _is_keeper(p)]


def _is_keeper(pid: int) -> bool:
    try:
        return "keeper" in processes.Stat(pid).name
    except OSError:
        return False


def _second(supervisor: int) -> int:
    """The second keeper, in its own session; not the process that forks it. 0: none."""
    below = processes.children(supervisor)
    for pid in _keepers():
        try:
            if pid not in below and os.getsid(pid) == pid:
                return pid
        except OSError:
            continue
    return 0


def _kill_at_once(pids: "list[int]") -> None:
    """SIGKILL them all so that none can react to the death of another."""
    for signum in (signal.SIGSTOP, signal.SIGKILL):
        for pid in pids:
            os.kill(pid, signum)


def test_supervisor_and_keeper_killed_together_nothing_lives(kernel_place: Box) -> None:
    run, pids = _tree(kernel_place)
    wait_for(partial(_second, run.pid), 5, "a second keeper")
    below = [pid for pid in processes.children(run.pid) if _is_keeper(pid)]
    _kill_at_once([run.pid, *below])
    wait_for(lambda: not any(map(alive, pids)), 1, "the tree is dead")
    run.wait()
    wait_for(lambda: not _keepers(), 5, "the second keeper ends")
    nothing_left(kernel_place)
    assert [record["reason"] for record in kernel_place.records()] == ["lost"]
    assert kernel_place.run("-q", "--", "true").stderr == ""


def test_a_killed_second_keeper_is_replaced(kernel_place: Box) -> None:
    run = kernel_place.hold("job")
    for _ in range(3):
        second = wait_for(partial(_second, run.pid), 5, "a second keeper")
        os.kill(second, signal.SIGKILL)
        wait_for(partial(processes.has_exited, second), 5, "it is dead")
    wait_for(partial(_second, run.pid), 5, "a second keeper")
    first = [pid for pid in processes.children(run.pid) if _is_keeper(pid)]
    os.kill(first[0], signal.SIGKILL)
    wait_for(lambda: first[0] not in _keepers() and len(_keepers()) == 2, 5, "two new keepers")
    run.terminate()
    assert kernel_place.finish(run).returncode == 143
    assert not _keepers()  # they exit before sandrun does


def test_supervisor_and_keepers_killed_together_the_next_run_cleans_up(place: Box) -> None:
    run, pids = _tree(place)
    _kill_at_once([run.pid, *_keepers()])
    run.wait()
    # When the next run starts, they are gone, or zombies that this test has not reaped.
    script = 'for p; do [ ! -e /proc/$p ] || grep "^State" /proc/$p/status; done'
    done = place.run("--", "sh", "-c", script, "sh", *map(str, pids))
    assert set(done.stdout.split("\n")) <= {"", "State:\tZ (zombie)"}
    assert place.records()[-2]["reason"] == "lost"
    nothing_left(place)


def test_a_signal_to_each_process_of_our_cgroup_is_passed_on(kernel_place: Box) -> None:
    """systemd stops a unit so. The command is in another cgroup and does not get that signal."""
    run = kernel_place.start("--", *LISTEN, new_session=True)
    up(run)
    keepers = filter(is_keeper, processes.children(run.pid))
    for pid in (run.pid, *witnesses(run.pid), *keepers):
        os.kill(pid, signal.SIGTERM)
    assert run.stdout
    assert run.stdout.readline() == f"{signal.SIGTERM}\n"
    os.kill(run.pid, FENCE)
    assert kernel_place.finish(run).stdout == ""


def test_the_supervisor_replaces_a_killed_keeper(place: Box) -> None:
    run, pids = _tree(place)
    first = _keeper(run.pid)
    os.kill(first, signal.SIGKILL)

    def another() -> bool:
        try:
            return _keeper(run.pid) != first
        except (StopIteration, OSError):
            return False

    wait_for(another, 5, "a new keeper")
    os.kill(run.pid, signal.SIGKILL)
    wait_for(lambda: not any(map(alive, pids)), 3, "the tree is dead")


# Its first thread has exited, others live on and ignore SIGTERM. Its pid is in a file.
HEADLESS = """
import ctypes, os, signal, sys, threading, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
def work(number):
    while not number and open("/proc/self/stat").read().split()[2] != "Z":
        time.sleep(0.01)
    if not number:
        with open(sys.argv[1] + ".new", "w") as file: file.write(str(os.getpid()))
        os.rename(sys.argv[1] + ".new", sys.argv[1])
    time.sleep(1000)
for number in range(int(sys.argv[2])):
    threading.Thread(target=work, args=(number,)).start()
ctypes.CDLL(None).syscall({"x86_64": 60}.get(os.uname().machine, 93), 0)  # exit(2), this thread
"""


def headless(place: Box, threads: int) -> "tuple[list[str], Path]":
    file = place.root / f"headless-{threads}"
    return [sys.executable, "-c", HEADLESS, str(file), str(threads)], file


@pytest.mark.skipif(ON_MACOS, reason="not on macOS: no first thread ends alone")
@pytest.mark.parametrize("threads", [1, 50])
def test_a_process_without_its_first_thread_is_ended(
    place: Box, backend: str, threads: int
) -> None:
    """cgroup.kill alone does not reach it (seen with 6.12, 6.18 and 7.2)."""
    command, file = headless(place, threads)
    began = time.monotonic()
    # Not the command itself, whose pid the supervisor knows.
    words = ["sh", "-c", '"$@" & wait', "sh", *command]
    done = place.run("-t", str(2 * SCALE), "--grace", "0.2", "--", *words)
    assert done.returncode == 124, done.stderr
    assert "could not end" not in done.stderr
    assert time.monotonic() - began < 9 * SCALE
    assert not alive(pid_in(file))
    nothing_left(place)
    assert place.run("--", "true", seconds=5).returncode == 0


@pytest.mark.skipif(ON_MACOS, reason="not on macOS: no first thread ends alone")
def test_after_sigkill_of_the_supervisor_no_thread_lives(place: Box, backend: str) -> None:
    command, file = headless(place, 5)
    run = place.start("--", "sh", "-c", '"$@" & wait', "sh", *command)
    pid = pid_in(file)
    os.kill(run.pid, signal.SIGKILL)
    wait_for(lambda: not alive(pid), 1 if backend != "rlimit" else 3, "it is dead")
    run.wait()
    assert place.run("--", "true", seconds=10).returncode == 0
    nothing_left(place)


@pytest.mark.skipif(ON_MACOS, reason="not on macOS: no first thread ends alone")
def test_the_next_run_ends_a_process_without_its_first_thread(place: Box) -> None:
    command, file = headless(place, 5)
    run = place.start("--", "sh", "-c", '"$@" & wait', "sh", *command)
    pid = pid_in(file)
    _kill_at_once([run.pid, *_keepers()])
    run.wait()
    assert place.run("--", "true", seconds=15).returncode == 0
    assert not alive(pid)
    nothing_left(place)


def test_a_fork_bomb_hits_the_pids_limit_and_is_gone(kernel_place: Box) -> None:
    bomb = "import os\nwhile True:\n  try: os.fork()\n  except OSError: pass\n"
    began = time.monotonic()
    done = kernel_place.run(
        "--pids", "64", "--timeout", "1", "--grace", "0.3", "--", sys.executable, "-c", bomb,
        seconds=60,
    )  # fmt: skip
    assert done.returncode == 124
    assert "limit of 64 processes and threads reached: refused " in done.stderr
    assert time.monotonic() - began < 20 * SCALE
    nothing_left(kernel_place)


def test_a_nested_run_is_charged_to_the_outer_one(kernel_place: Box) -> None:
    inner = [*launch(kernel_place), "-m", "1G", "--", *hog(600)]
    done = kernel_place.run("-m", "96M", "--", *inner)
    assert done.returncode == 137
    assert "memory limit of 96.0 MiB reached" in done.stderr
    nothing_left(kernel_place)


def test_a_nested_run_has_its_own_limit(kernel_place: Box) -> None:
    inner = [*launch(kernel_place), "-m", "48M", "--", *hog(600)]
    done = kernel_place.run("-m", "1G", "--", "sh", "-c", '"$@"; echo "inner $?"', "sh", *inner)
    assert (done.returncode, done.stdout) == (0, "inner 137\n"), done.stderr
    assert "memory limit of 48.0 MiB reached" in done.stderr
    assert "memory limit of 1.0 GiB reached" not in done.stderr


def test_a_cpu_limit_is_enforced_and_cpu_time_is_measured(kernel_place: Box) -> None:
    spin = "import time\nend = time.monotonic() + 2\nwhile time.monotonic() < end: pass\n"
    spin += "print(time.process_time())"
    kernel_place.run("--cpus", "0.3", "--", sys.executable, "-c", spin)
    done = kernel_place.run("--", sys.executable, "-c", spin)
    limited, free = (float(str(record["cpu"])) for record in kernel_place.records()[-2:])
    wall = float(str(kernel_place.records()[-2]["wall"]))
    assert 0.2 < limited < 0.3 * wall + 0.2  # the quota is refilled every 100 ms
    # The kernel's figure is at least that of the process itself before its end.
    assert float(done.stdout) <= free < float(done.stdout) + 0.5 * SCALE


def test_the_processors_are_divided_between_the_run_and_its_supervisor(kernel_place: Box) -> None:
    """Otherwise the runnable processes of a fork bomb would starve the supervisor."""
    script = (
        "cat /proc/self/cgroup; "
        'cat "/sys/fs/cgroup$(sed -n s/^0:://p /proc/self/cgroup)/../cpu.weight"'
    )
    done = kernel_place.run("--", "sh", "-c", script)
    on_v1 = re.search(r"^\d+:(\w+,)*cpu(,\w+)*:.*/sandrun-", done.stdout, re.M)
    assert on_v1 or done.stdout.endswith("\n100\n"), done


def test_groups_are_removed(kernel_place: Box) -> None:
    kernel_place.run("--", "true")
    kernel_place.run("-m", "48M", "--", *hog(200))
    assert [groups_of(str(record["id"])) for record in kernel_place.records()] == [[], []]
    run = kernel_place.start("--", "sleep", "1000")
    (row,) = wait_for(kernel_place.status, 20, "the run shows")
    wait_for(lambda: groups_of(str(row["id"])), 20, "the run's group")
    os.kill(run.pid, signal.SIGKILL)  # possibly before it has a keeper
    kernel_place.run("--", "true")
    wait_for(lambda: not groups_of(str(row["id"])), 5, "its keeper or the next run removes it")


def test_no_other_user_can_hold_the_lock_of_a_runs_group(kernel_place: Box) -> None:
    """flock(2) needs a descriptor of the directory. Other users can still read its files."""
    run = kernel_place.start("--", "sleep", "1000")
    (row,) = wait_for(kernel_place.status, 20, "the run shows")
    made = wait_for(lambda: groups_of(str(row["id"])), 20, "the run's group")
    for group in made:
        assert os.stat(group).st_mode & 0o077 == 0o011
        if os.geteuid() == 0:
            tried = kernel_place.run(group, "true", argv=["flock", "-n"], user=65534)
            assert "Permission denied" in tried.stderr
            limits = [f"{group}/{name}" for name in ("memory.max", "memory.limit_in_bytes")]
            for limit in filter(os.path.exists, limits):
                assert kernel_place.run(limit, argv=["cat"], user=65534).returncode == 0
    run.terminate()
    kernel_place.finish(run)


def test_the_group_of_a_dead_run_is_ended_by_a_run_of_another_queue(kernel_place: Box) -> None:
    kernel_place.env["SANDRUN_POOL"] = "off"  # or the second run waits for memory
    run, pids = _tree(kernel_place)
    wait_for(partial(_second, run.pid), 5, "a second keeper")
    (row,) = kernel_place.status()
    dead = str(row["id"])
    killed = [run.pid, *_keepers()]
    live = kernel_place.hold("live", "--queue", "live")
    assert groups_of(dead)
    _kill_at_once(killed)
    run.wait()
    assert any(map(alive, pids))
    assert kernel_place.run("--queue", "other", "--", "true").returncode == 0
    assert not groups_of(dead)
    assert not any(map(alive, pids))
    (ours,) = kernel_place.ids("--queue", "live").values()
    assert groups_of(ours)
    kernel_place.let("live")
    assert kernel_place.finish(live).returncode == 0


def test_require_kernel(place: Box, backend: str) -> None:
    done = place.run("--require", "kernel", "--", "echo", "ran")
    if backend == "rlimit":
        assert (done.returncode, done.stdout) == (125, "")
        assert "the kernel does not enforce its limits" in done.stderr
    else:
        assert (done.returncode, done.stdout) == (0, "ran\n")


def test_ctrl_c_reaches_the_command_once(place: Box) -> None:
    import pty

    said = place.root / "said"
    script = 'trap "echo int >>$0" INT; echo up >>$0; while :; do sleep 0.05; done'
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(place.project)
        os.execvpe("sh", ["sh", "-c", '"$@"; echo "after $?"; read _', "sh", *launch(place),
                   "--timeout", "20", "--grace", "0.1", "--", "sh", "-c", script, str(said)],
                   {**place.env})  # fmt: skip
    try:
        wait_for(lambda: said.exists() and said.read_text() == "up\n", 20, "the command is up")
        # A signal that comes before the supervisor has looked may have missed the command, and is
        # passed on.
        wait_for(lambda: ON_MACOS or witnesses(pid), 20, "it supervises")
        os.write(terminal, b"\x03")
        wait_for(lambda: "int" in said.read_text(), 5, "it gets the interrupt")
        time.sleep(0.2 * SCALE)  # a second one, sent by sandrun, would arrive within this time
        assert said.read_text() == "up\nint\n"
    finally:
        os.close(terminal)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)

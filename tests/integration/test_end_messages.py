"""What is said about an end: a signal, a limit on processes, a near backstop; and how calmly."""

import os
import pty
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness import ON_MACOS, Box, launcher, wait_for

SH = ["sh", "-c"]


@pytest.fixture(params=["rlimit", "auto"])
def place(make_box: "Callable[[str], Box]", request: pytest.FixtureRequest) -> Box:
    return make_box(request.param)


def said(box: Box, *words: str) -> "list[str]":
    return [line for line in box.run(*words).stderr.splitlines() if "polls the limits" not in line]


DEADLY = ["KILL", "SEGV", "ABRT", "BUS", "FPE", "ILL", "TERM", "HUP", "QUIT", "ALRM", "USR1"]


@pytest.mark.parametrize("name", DEADLY)
def test_a_signal_that_ended_the_command_is_named(box: Box, name: str) -> None:
    (line,) = said(box, "--", *SH, f"ulimit -c 0; kill -{name} $$")
    assert line.startswith(f"sandrun: the command was ended by SIG{name} (")
    assert ("no limit of the run" in line) == (name == "KILL")
    assert "core dumped" not in line
    assert not said(box, "-q", "--", *SH, f"kill -{name} $$")


def test_in_a_container_as_well(place: Box) -> None:
    (line,) = said(place, "--", *SH, "kill -SEGV $$")
    assert "SIGSEGV (segmentation fault" in line


@pytest.mark.parametrize("name", ["INT", "PIPE"])
def test_signals_that_no_shell_reports(box: Box, name: str) -> None:
    assert not said(box, "--", *SH, f"trap - {name}; kill -{name} $$")


def test_codes_of_a_shell_are_its_own(box: Box) -> None:
    assert not said(box, "--", *SH, "exit 139")


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_that_was_sent_to_sandrun_is_not_reported(place: Box, signum: int) -> None:
    run = place.start("-q", "--", *SH, "echo up; exec sleep 1000")
    loud = place.start("--queue", "other", "--", *SH, "echo up; exec sleep 1000")
    for process in (run, loud):
        assert process.stdout
        assert process.stdout.readline() == "up\n"
        process.send_signal(signum)
        place.finish(process)
        assert "ended by" not in place.heard(process)


def test_a_signal_of_the_terminal_is_not_reported(box: Box) -> None:
    main, side = pty.openpty()
    up = box.root / "up"
    words = [*launcher(), "--", *SH, f"ulimit -c 0; echo >{up}; exec sleep 1000"]
    # A session of its own whose terminal it is, as in a window.
    run = subprocess.Popen(["setsid", "-c", *words], stdin=side, stdout=side, stderr=side,
                           env=box.env, cwd=box.project)  # fmt: skip
    os.close(side)
    box.started.append(run)  # type: ignore[arg-type]
    wait_for(up.exists, 20, "the command is up")
    os.write(main, b"\x1c")  # Ctrl-\
    run.wait(20)
    heard = b""
    try:
        while part := os.read(main, 4096):
            heard += part
    except OSError:
        pass  # nobody has the other end any more
    os.close(main)
    assert b"ended by" not in heard


FORKS = """
import os, time
for _ in range(200):
    try:
        if not os.fork(): time.sleep(1); os._exit(0)
    except OSError:
        break
"""


def test_a_limit_on_processes_is_named(make_box: "Callable[[str], Box]") -> None:
    place = make_box("auto")
    place.run("-q", "--", "true")
    if place.last_record()["backend"] == "rlimit":
        pytest.skip("cgroup1 is not to be had here: nor any other container of a kernel")
    done = place.run("--pids", "20", "--", sys.executable, "-c", FORKS)
    assert done.returncode == 0
    assert "sandrun: limit of 20 processes and threads reached: refused " in done.stderr
    assert "hint: allow more: --pids 40, or pids = 40 in sandrun.toml" in done.stderr
    assert "limit of" not in place.run("--pids", "20", "--", "true").stderr
    # One inside has its own to tell of, and the outer one nothing.
    inner = [*launcher(), "--pids", "10", "--", sys.executable, "-c", FORKS]
    nested = place.run("--pids", "100", "--", *inner)
    assert nested.stderr.count("processes and threads reached") == 1
    assert "limit of 10 " in nested.stderr


@pytest.mark.skipif(ON_MACOS, reason="not on macOS: no process's limits can be read")
def test_a_failure_near_the_users_limit_on_data_is_explained(
    make_box: "Callable[[str], Box]",
) -> None:
    """The run's mark is a little below it. Reserved memory, which no monitor sees: the next piece
    is refused."""
    place = make_box("rlimit")
    script = (
        "import mmap, sys, time\nkept = []\n"
        "try:\n    while True: kept.append(mmap.mmap(-1, 1 << 26, flags=mmap.MAP_PRIVATE))\n"
        "except OSError: time.sleep(2); sys.exit(3)\n"
    )
    limit = ["prlimit", f"--data={2 << 30}:", *launcher()]
    done = place.run("-m", "64M", "--", sys.executable, "-c", script, argv=limit)
    assert done.returncode == 3
    assert "it may have failed for lack of memory: a process had " in done.stderr
    assert "your own limit allows each 2.0 GiB (RLIMIT_DATA)" in done.stderr
    assert "hint: allow more: ulimit -d unlimited" in done.stderr
    script = script.replace("exit(3)", "exit(0)")
    fine = place.run("-m", "64M", "--", sys.executable, "-c", script, argv=limit)
    assert "perhaps" not in fine.stderr
    assert "perhaps" not in place.run("-m", "64M", "--", "false", argv=limit).stderr


class _Plain(Box):
    """A box in which everything runs as a user without any container."""

    def start(
        self, *args: "str | Path", user: "int | None" = None, **more: Any
    ) -> "subprocess.Popen[str]":
        return super().start(*args, user=64998 if os.geteuid() == 0 else None, **more)


@pytest.fixture
def fallback() -> "Iterator[Box]":
    with tempfile.TemporaryDirectory(prefix="sandrun-test-") as scratch:
        os.chmod(scratch, 0o755)
        box = _Plain(Path(scratch), "auto")
        if os.geteuid() == 0:
            for path in (box.project, box.state, box.home, box.root):
                os.chown(path, 64998, 64998)
        done = box.run("-qq", "--", "true")
        assert done.returncode == 0, done
        if box.records()[-1]["backend"] != "rlimit":
            pytest.skip("about the fallback, which is not needed here")
        yield box
        box.close()


def test_the_fallback_is_reported_once_a_boot_and_project(fallback: Box) -> None:
    note = "a monitor polls the limits, no kernel enforces them here"
    assert note not in fallback.run("-q", "--", "true").stderr
    assert note in fallback.run("--", "true").stderr
    assert note not in fallback.run("--", "true").stderr
    assert note in fallback.run("-v", "--", "true").stderr
    assert note in fallback.run("--queue", "other", "--", "true").stderr
    marker = first(fallback) / "fallback-noted"
    marker.unlink()
    marker.symlink_to("another-boot")
    assert note in fallback.run("--", "true").stderr
    assert note not in fallback.run("--", "true").stderr
    # Refused, not passed over: nobody asked for better.
    assert note not in fallback.run("--backend", "rlimit", "--", "true").stderr


def first(box: Box) -> Path:
    """The state directory that was made first."""
    return min(box.state.glob("seq-exec-*"), key=lambda path: path.stat().st_ctime_ns)


STEPS = """
import sys, time
kept = []
for size in sys.argv[1:]:
    kept.append(bytearray(b"x") * (int(size) << 20))
    time.sleep(1)
"""


BURST = """
import mmap, time
kept = mmap.mmap(-1, 55 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x8000)  # MAP_POPULATE
time.sleep(2)
"""


def test_half_of_the_memory_is_not_reported_if_usage_stays_there(place: Box) -> None:
    words = ["-m", "100M", "--", sys.executable, "-c", BURST]
    assert "in use" not in "".join(said(place, *words))
    assert len([line for line in said(place, "-v", *words) if "in use" in line]) == 1


def test_half_of_the_memory_is_reported_once_while_usage_grows(place: Box) -> None:
    words = ["-m", "200M", "--", sys.executable, "-c", STEPS, "110", "20", "20"]
    (line,) = (line for line in said(place, *words) if "in use" in line)
    assert line.startswith("sandrun: memory: 1")
    assert " MiB of 200 MiB in use (" in line
    assert " MiB left; most by " in line
    assert "warn" not in line.lower()
    assert not [line for line in said(place, "-q", *words) if "in use" in line]


NEAR = """
import os, sys, time
from sandrun.platform import spawn
from sandrun.backends import rlimit
from sandrun.model import Limits
limits = Limits(64 << 20, 0.1)
limits.pids = 10
container = rlimit.RlimitBackend().open("0badcafe", limits)
script = "for i in 1 2 3 4 5 6 7 8 9; do sleep 1000 & done; echo; wait"
container.spawn(["sh", "-c", script], os.environ, spawn.capture())
end = time.monotonic() + 20
while not container.usage().near_limits and time.monotonic() < end:
    container.poll()
    time.sleep(0.05)
print(container.usage().near_limits)
container.kill()
"""


@pytest.mark.skipif(ON_MACOS, reason="not on macOS: no process's limits can be read")
def test_nearly_as_many_processes_as_the_fallback_allows_are_noted(fallback: Box) -> None:
    """Ten here, for eight thousand would be too many; root has no such limit."""
    run = fallback.start("-c", NEAR, argv=[sys.executable])
    done = fallback.finish(run)
    assert "{'tasks': (10, 10)}" in done.stdout or "{'tasks': (9, 10)}" in done.stdout, done

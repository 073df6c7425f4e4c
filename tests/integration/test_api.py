"""Runs from Python: outcomes, threads, cancelling, asyncio; in the process of the tests itself."""

import asyncio
import itertools
import os
import signal
import subprocess
import sys
import threading
import typing

import pytest

import sandrun
from sandrun import api
from sandrun.config import options
from tests.gitbox import watches
from tests.harness import SCALE, Box, wait_for


@pytest.fixture
def here(box: Box, monkeypatch: pytest.MonkeyPatch) -> Box:
    """The box as the environment of this process."""
    for key, value in box.env.items():
        monkeypatch.setenv(key, value)
    monkeypatch.chdir(box.project)
    return box


def quiet(**more: typing.Any) -> "dict[str, typing.Any]":
    return {
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        **more,
    }


def test_the_outcome_of_a_command(here: Box) -> None:
    done = sandrun.run(["sh", "-c", "echo out; echo err >&2; exit 3"], memory="300M", **quiet())
    assert (done.code, done.reason, done.ok) == (3, "exit", False)
    assert (done.stdout, done.stderr) == ("out\n", "err\n")
    assert (done.limit, done.backend) == (300 << 20, "none")
    (record,) = here.records()
    assert (record["id"], record["wall"], record["command"]) == (
        done.id,
        done.wall,
        list(done.command),
    )
    assert sandrun.run(["true"]).ok


def test_a_signal_a_timeout_and_a_limit_are_distinguished(here: Box) -> None:
    killed = sandrun.run(["sh", "-c", "kill -KILL $$"])
    assert (killed.reason, killed.code) == ("signal", 137)
    late = sandrun.run(["sleep", "1000"], timeout="100ms", **quiet())
    assert (late.reason, late.code) == ("timeout", 124)
    hog = "kept = [bytearray(b'x') * (1 << 20) for step in range(300)]"
    full = sandrun.run([sys.executable, "-c", hog], memory="50M", backend="rlimit", **quiet())
    assert (full.reason, full.code) == ("memory", 137)
    assert full.peak is not None
    assert full.peak > 25 << 20


def test_a_command_that_cannot_start_has_a_shells_exit_code(here: Box) -> None:
    missing = sandrun.run(["/nonesuch"], **quiet())
    assert (missing.code, missing.reason) == (127, "not-started")


def test_failures_are_exceptions_with_a_hint(here: Box) -> None:
    with pytest.raises(sandrun.SandrunError, match="no such directory") as caught:
        sandrun.run(["true"], project="/nonesuch", **quiet())
    assert caught.value.exit_code == 125
    with pytest.raises(sandrun.SandrunError, match="expected a size") as caught:
        sandrun.run(["true"], memory="lots", **quiet())
    holder = here.hold("one")
    with pytest.raises(sandrun.GaveUp):
        sandrun.run(["true"], no_wait=True, **quiet())
    here.let("one")
    here.finish(holder)
    for wrong in ("true", [], ["true"]):
        with pytest.raises(TypeError, match=r"non-empty list of words|no such setting"):
            sandrun.run(wrong, **({"nonesuch": 1} if wrong == ["true"] else {}))  # type: ignore[arg-type]


def test_many_threads_run_one_at_a_time(here: Box) -> None:
    outcomes: list[sandrun.Outcome] = []

    def exits(code: int) -> None:
        outcomes.append(sandrun.run(["sh", "-c", f"exit {code}"], **quiet()))

    threads = [threading.Thread(target=exits, args=(code,)) for code in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60 * SCALE)
    assert sorted(outcome.code for outcome in outcomes) == list(range(8))
    spans = sorted((float(str(r["since"])), float(str(r["wall"]))) for r in here.records())
    for (since, wall), (later, _) in itertools.pairwise(spans):
        assert later >= since + wall - 0.05


def test_a_run_is_cancelled_from_another_thread_whole(here: Box) -> None:
    script = "trap '' TERM; sh -c 'sleep 1000' & echo $$ >begun; sleep 1000"
    run = sandrun.start(["sh", "-c", script], grace="100ms", backend="rlimit", **quiet())
    wait_for((here.project / "begun").exists, 20)
    with pytest.raises(TimeoutError):
        run.wait(0)
    run.cancel()
    outcome = run.wait(30 * SCALE)
    assert (outcome.code, outcome.reason) == (128 + signal.SIGKILL, "lost")
    assert run.wait() == outcome
    run.cancel()
    wait_for(lambda: not here.leftovers(), 20)


def test_a_waiter_is_cancelled_and_leaves_the_queue(here: Box) -> None:
    holder = here.hold("one")
    run = sandrun.start(["true"], **quiet())
    wait_for(lambda: len(here.view()) == 2, 20)
    run.cancel()
    with pytest.raises(sandrun.GaveUp):
        run.wait(30 * SCALE)
    assert [line.split(" job ")[-1].split()[0] for line in here.view()] == ["one"]
    here.let("one")
    assert here.finish(holder).returncode == 0


@pytest.mark.parametrize("cancelled", [True, False])
def test_a_run_that_waits_for_git_never_starts_when_it_is_ended(here: Box, cancelled: bool) -> None:
    """Cancelled, it gave up as one that waits for its turn; ended by others it has an outcome."""
    subprocess.run(["git", "init", "-q"], cwd=here.project, check=True)
    (here.project / ".git/index.lock").touch()
    run = sandrun.start(["touch", "ran"], git_wait="10m", **quiet())
    process: typing.Any = run._process
    wait_for(lambda: watches(process), 20, "it waits for git")
    if cancelled:
        run.cancel()
        with pytest.raises(sandrun.GaveUp):
            run.wait(60 * SCALE)
    else:
        process.terminate()
        outcome = run.wait(60 * SCALE)
        assert (outcome.reason, outcome.code, outcome.ok) == ("left", 143, False)
    assert not (here.project / "ran").exists()


def test_a_run_inside_a_run_starts_at_once_and_is_cancelled_too(here: Box) -> None:
    script = """
import sandrun, subprocess, sys
run = sandrun.start(["sleep", "1000"], stdout=subprocess.DEVNULL)
assert run._queued.wait(60)
run.cancel()
print(run.wait(60).reason)
"""
    done = sandrun.run([sys.executable, "-c", script], timeout="2m", **quiet())
    assert (done.code, done.stdout) == (0, "signal\n"), done.stderr


def test_the_command_does_not_see_the_event_descriptor(here: Box) -> None:
    script = "env | grep -c SANDRUN_TELL; ls /proc/self/fd | wc -l"
    plain = here.run("--", "sh", "-c", script).stdout
    assert sandrun.run(["sh", "-c", script], **quiet()).stdout == plain


def test_a_program_that_is_stopped_at_the_end_loses_the_outcome_and_does_not_hang(
    here: Box,
) -> None:
    """With a pipe of one page, as a user who has very many pipes gets it (pipe(7))."""
    script = """
import fcntl, os, sandrun, sys
pipe = os.pipe
def small():
    ends = pipe()
    fcntl.fcntl(ends[1], fcntl.F_SETPIPE_SZ, 4096)
    return ends
os.pipe = small
run = sandrun.start(sys.argv[1:])
try:
    print(run.wait(60).reason)
except sandrun.SandrunError as error:
    print(error.text)
"""
    program = here.start(*here.job("one"), "é" * 4000, argv=[sys.executable, "-c", script])
    here.begun("one")
    program.send_signal(signal.SIGSTOP)
    try:
        here.let("one")
        assert here.run("--", "true").returncode == 0
    finally:
        program.send_signal(signal.SIGCONT)
    assert here.finish(program, 90).stdout == "sandrun ended with 0\n"


def test_asyncio_runs_and_cancels(here: Box) -> None:
    async def main() -> "tuple[sandrun.Outcome, ...]":
        task = asyncio.create_task(sandrun.run_async(["sleep", "1000"], queue="other", **quiet()))
        outcomes = await asyncio.gather(
            *(sandrun.run_async(["sh", "-c", f"exit {code}"], **quiet()) for code in range(4))
        )
        await asyncio.to_thread(wait_for, lambda: "sleep 1000" in str(here.view()), 20)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return tuple(outcomes)

    assert [outcome.code for outcome in asyncio.run(main())] == [0, 1, 2, 3]
    wait_for(lambda: not here.leftovers(), 20)


def test_output_that_is_no_text_is_an_error_as_with_popen(here: Box) -> None:
    command = ["printf", r"caf\351"]
    for _ in range(2):
        with pytest.raises(UnicodeDecodeError):
            sandrun.start(command, **quiet(encoding="utf-8")).wait(60 * SCALE)
    assert sandrun.run(command, **quiet(encoding="utf-8", errors="replace")).stdout == "caf\ufffd"
    assert sandrun.run(command, **quiet(encoding="latin-1")).stdout == "caf\xe9"
    assert sandrun.run(["printf", r"a\r\nb"], **quiet()).stdout == "a\nb"
    with pytest.raises(LookupError):
        sandrun.start(["touch", "ran"], **quiet(encoding="nonesuch"))
    assert not (here.project / "ran").exists()


@pytest.mark.parametrize("line", [b'{"v": 1, "event": "end', b"5\n", b"{}\n", b"\377\n"])
def test_an_event_that_was_cut_off_is_none(
    here: Box, monkeypatch: pytest.MonkeyPatch, line: bytes
) -> None:
    code = f"""if 1:
        import os, sys
        os.write(int(os.environ["SANDRUN_TELL"]), {line!r})
        os.kill(os.getpid(), 9) if sys.argv[-1] == "die" else sys.exit(3)
    """
    monkeypatch.setattr(api, "_launcher", lambda: [sys.executable, "-c", code])
    with pytest.raises(sandrun.SandrunError, match="ended with 3"):
        sandrun.start(["fail"], **quiet()).wait(60 * SCALE)
    assert sandrun.start(["die"], **quiet()).wait(60 * SCALE).reason == "lost"


def test_output_may_be_larger_than_a_pipe(here: Box) -> None:
    script = "head -c 200000 /dev/zero; head -c 200000 /dev/zero >&2"
    done = sandrun.start(["sh", "-c", script], **quiet()).wait(30 * SCALE)
    assert (done.ok, done.stdout, done.stderr) == (True, "\0" * 200000, "\0" * 200000)


def test_an_error_while_the_output_is_read_reaches_the_caller(here: Box) -> None:
    code = """
import resource, subprocess, sandrun
script = "until [ -e go ]; do sleep 0.05; done; head -c 64M /dev/zero"
run = sandrun.start(["sh", "-c", script], stdout=subprocess.PIPE)
run._queued.wait(60)
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + (32 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
open("go", "w").close()
try:
    run.wait(60)
except MemoryError:
    print("raised")
"""
    program = here.start(argv=[sys.executable, "-c", code])
    assert here.finish(program, 90).stdout == "raised\n"
    wait_for(lambda: not here.leftovers(), 20)


def test_cancelling_a_run_that_reports_nothing_keeps_no_program_alive(
    here: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "_SETTLE_SECONDS", 0.1)
    before = set(threading.enumerate())
    run = sandrun.start(["touch", "ran"], **quiet())
    os.kill(run.pid, signal.SIGSTOP)
    run.cancel()

    def ended() -> bool:
        return all(t.daemon for t in set(threading.enumerate()) - before)

    try:
        wait_for(ended, 20, "the thread that cancels")
    finally:
        os.kill(run.pid, signal.SIGCONT)
    with pytest.raises(sandrun.GaveUp):
        run.wait(60 * SCALE)
    assert not (here.project / "ran").exists()


def test_settings_are_those_of_the_command_line() -> None:
    typed = typing.get_type_hints(api.Settings)
    assert set(typed) == {option.key for option in options.OPTIONS}
    assert api._flags({"memory": "1G", "no_wait": True, "verbose": 2, "quiet": 0}) == [
        "--memory", "1G", "--no-wait", "--verbose", "--verbose",
    ]  # fmt: skip


def test_numbers_are_bytes_and_booleans_are_flags(here: Box) -> None:
    off: sandrun.Options = {"detach": False, "no_wait": False, "clean_git_env": False}
    run = sandrun.run(["true"], memory=300 << 20, swap=0, pool=64 << 30, **{**quiet(), **off})
    assert (run.ok, run.limit) == (True, 300 << 20)
    with pytest.raises(sandrun.SandrunError, match="at least 1M"):
        sandrun.run(["true"], memory=300, **quiet())


def test_an_interrupt_ends_a_run_that_is_detached_too(here: Box) -> None:
    code = "import sandrun; sandrun.run(['sleep', '1000'], detach=True)"
    program = here.start(argv=[sys.executable, "-c", code])
    wait_for(lambda: "sleep 1000" in str(here.view()), 20, "it runs")
    program.send_signal(signal.SIGINT)
    assert here.finish(program, 30).returncode == -signal.SIGINT
    wait_for(lambda: not here.leftovers(), 10, "it is ended")


def test_importing_the_package_is_free() -> None:
    code = "import sys; a = set(sys.modules); import sandrun; print(*(set(sys.modules) - a))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "sandrun\n"
    with pytest.raises(AttributeError):
        sandrun.nonesuch  # noqa: B018

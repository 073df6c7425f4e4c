"""Two versions of sandrun in one queue: this one, and the one that landed before it.

Both directions of each case. The other version is taken from the repository's history and runs from
its source, with the dependencies of this one.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest

from sandrun.platform import processes
from tests.harness import ROOT, Box, alive, launcher, wait_for
from tests.integration.test_unused_states import late_locker, race

OTHER = "7d89752d3b8d"
"""The commit that landed before state had a version."""
_GIT = ("git", "-c", "safe.directory=*", "-C", str(ROOT))


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> "list[str]":
    """The command that starts the other version."""
    tree = tmp_path_factory.mktemp("other")
    archive = subprocess.run(
        [*_GIT, "archive", OTHER, "sandrun", "backends"], capture_output=True, check=False
    )
    if archive.returncode:
        pytest.skip("needs the history of the repository")
    subprocess.run(["tar", "-C", tree, "-xf", "-"], input=archive.stdout, check=True)
    code = f"import sys; sys.path.insert(0, {str(tree)!r}); from sandrun.cli import main; main()"
    return [sys.executable, "-I", "-c", code]


@pytest.fixture(params=["this after the other", "the other after this"])
def versions(request: pytest.FixtureRequest, other: "list[str]") -> "tuple[list[str], list[str]]":
    """The commands that start the version which comes first, and the one which comes second."""
    both = (other, launcher())
    return both if request.param.startswith("this") else both[::-1]


def test_they_run_one_at_a_time_in_order(box: Box, versions: "tuple[list[str], list[str]]") -> None:
    first, second = versions
    names = ["one", "two", "three", "four"]
    started = []
    for name, argv in zip(names, (first, second, first, second), strict=True):
        started.append(box.start("--", *box.job(name), argv=argv))
        if name == "one":
            box.begun(name)
        else:
            wait_for(lambda n=name: any(f" job {n} " in line for line in box.view()), 20)  # type: ignore[misc]
    done = box.run("status", "--json", argv=second)
    assert done.returncode == 0
    assert all(f" job {name} " in done.stdout for name in names)
    assert box.let_all(names) == names
    assert [box.finish(process).returncode for process in started] == [0] * 4
    events = [name for _, name in box.events()]
    assert events == [name for name in names for _ in range(2)], "two ran at once"
    assert [record["reason"] for record in box.records()] == ["exit"] * 4


@pytest.mark.parametrize("backend", ["auto", "rlimit"])
def test_one_cleans_up_after_the_killed_supervisor_of_the_other(
    make_box: "Callable[[str], Box]", versions: "tuple[list[str], list[str]]", backend: str
) -> None:
    first, second = versions
    box = make_box(backend)
    lost = box.start("--", "sleep", "600", argv=first)
    wait_for(lambda: box.view() and box.status(), 20)
    sleeper = wait_for(lambda: _named(lost.pid, "sleep"), 20, "the command runs")
    # Supervisor and keepers at once: nobody of that version is left to clean up.
    for pid in [lost.pid, *processes.descendants(lost.pid)]:
        if pid != sleeper:
            os.kill(pid, signal.SIGKILL)
    lost.wait()
    done = box.run("--", "true", argv=second)
    assert done.returncode == 0, done.stderr
    wait_for(lambda: not alive(sleeper), 20, "what the lost run left is dead")
    assert [record["reason"] for record in box.records()] == ["lost", "exit"]


def _named(pid: int, name: str) -> int:
    return next((p for p in processes.descendants(pid) if processes.Stat(p).name == name), 0)


def test_one_ends_the_runs_and_waiters_of_the_other(
    box: Box, versions: "tuple[list[str], list[str]]"
) -> None:
    first, second = versions
    run = box.start("--", *box.job("one"), argv=first)
    box.begun("one")
    waiter = box.start("--", *box.job("two"), argv=first)
    wait_for(lambda: len(box.view()) == 2, 20)
    done = box.run("kill", "--all", argv=second)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("ended ") == 2
    assert {box.finish(run).returncode, box.finish(waiter).returncode} == {143}


def test_one_resumes_what_the_other_paused(
    box: Box, versions: "tuple[list[str], list[str]]"
) -> None:
    first, second = versions
    assert box.run("pause", argv=first).returncode == 0
    waiter = box.start("--", "true", argv=second)
    wait_for(lambda: "paused" in box.heard(waiter), 20)
    assert box.run("resume", argv=second).returncode == 0
    assert box.finish(waiter).returncode == 0


LATER = {
    "a later format": b'{"v": 99, "id": {"of": "another", "form": 1}, "backend": "cgroup3"}',
    "no JSON": b"\x00\x01\x02 later",
    "brackets": b"[" * 100_000,
    "a list": b"[1, 2]",
    "digits": b'{"v": 1, "id": ' + b"7" * 5000 + b"}",
}


@pytest.mark.parametrize("name", LATER)
def test_a_holders_line_of_an_unknown_version_ends_nothing(box: Box, name: str) -> None:
    """Not this run, not the looking, and not the ending of all."""
    assert box.run("--", "true").returncode == 0
    (state,) = box.directories()
    for words in (("--", "true"), ("status",), ("kill", "--all")):
        (state / "executor.lock").write_bytes(LATER[name])
        done = box.run(*words)
        assert "internal error" not in done.stderr
        assert done.returncode == (1 if words[0] == "kill" else 0), done.stderr


def test_one_removes_the_state_while_the_other_starts(
    box: Box, versions: "tuple[list[str], list[str]]", other: "list[str]"
) -> None:
    """The run lock's file can be removed because every version looks at it again after locking."""
    (box.state / f"sandrun-locks-{os.geteuid()}").touch()  # no second lock file that would hide it
    first, second = ([word for word in words if word != "-I"] for words in versions)
    file = "runlock.py" if versions[0] == other else "posix_run_lock.py"
    late_locker(box, first, second, f"{file}:try_lock:flock+0")
    assert race(box, [first, second, second], 8) > 2

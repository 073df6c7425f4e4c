"""Who is in the directory of a run: its waiter, then, once it has started, the command alone."""

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from sandrun.platform import processes
from sandrun.platform.processes import has_exited
from tests.gitbox import whole_host
from tests.harness import ON_MACOS, Box, is_keeper, wait_for

AWAY = ["sh", "-c", 'cd / && echo "$$" && read _ && exit 3']
"""A command that leaves the directory it was started in."""


@pytest.fixture(params=["none", "rlimit", "auto"])
def place(make_box: "Callable[[str], Box]", request: pytest.FixtureRequest) -> Box:
    return make_box(request.param)


def started(place: Box, *options: str, cwd: "Path | None" = None) -> "subprocess.Popen[str]":
    """A run whose command has left its directory and waits for a line."""
    run = place.start(*options, "--", *AWAY, cwd=cwd, stdin=subprocess.PIPE)
    assert run.stdout and run.stdout.readline()
    return run


def holders(box: Box) -> "dict[int, str]":
    """Those of our processes that are in the project or below it."""
    found = {}
    for pid in processes.descendants(os.getpid()):
        try:
            found[pid] = processes.working_directory(pid)
        except OSError:
            continue
    return {pid: path for pid, path in found.items() if path.startswith(str(box.project))}


def test_supervisor_and_keepers_leave_it(place: Box) -> None:
    run = started(place)
    wait_for(lambda: not holders(place), 10, "nobody is there")
    assert place.status()[0]["cwd"] == str(place.project)  # where it was started
    for keeper in filter(is_keeper, processes.children(run.pid)):  # another one does not come back
        os.kill(keeper, signal.SIGKILL)
        wait_for(partial(has_exited, keeper), 10, "it was reaped")
    wait_for(lambda: not holders(place), 10, "nobody is there")
    assert place.finish(run, input="\n").returncode == 3


@pytest.fixture
def mount(tmp_path: Path) -> "Iterator[Path]":
    path = tmp_path / "mount"
    path.mkdir()
    argv = ["mount", "-t", "tmpfs", "-o", "size=1M", "none", str(path)]
    if os.geteuid() or subprocess.run(argv, check=False, capture_output=True).returncode:
        pytest.skip("makes users and mounts: runs as root")
    yield path
    subprocess.run(["umount", "-l", path], check=False, capture_output=True)


def test_a_file_system_is_unmounted_under_a_run_that_has_left_it(place: Box, mount: Path) -> None:
    run = started(place, "--project", str(place.project), cwd=mount)

    def unmounted() -> bool:
        return not subprocess.run(["umount", mount], check=False, capture_output=True).returncode

    wait_for(unmounted, 10, "nothing holds it")
    assert place.finish(run, input="\n").returncode == 3


def test_a_removed_tree_does_not_matter(place: Box) -> None:
    sub = place.project / "sub"
    sub.mkdir()
    run = started(place, "--project", str(place.project), cwd=sub)
    shutil.rmtree(sub)
    sub.mkdir()  # another one of that name is not taken for it
    done = place.finish(run, input="\n")
    assert done.returncode == 3
    assert place.last_record()["cwd"] == str(sub)


def test_a_command_starts_where_its_caller_was_whatever_that_is_called_now(box: Box) -> None:
    """As with flock(1): a waiter stays in the directory."""
    first = box.hold("one")
    old, new = box.project / "old", box.project / "new"
    old.mkdir()
    second = box.start("--project", str(box.project), "--", "pwd", "-P", cwd=old)
    wait_for(lambda: len(box.view()) == 2, 20, "it waits")
    old.rename(new)
    old.mkdir()
    box.let("one")
    assert box.finish(second).stdout == f"{new}\n"
    assert box.finish(first).returncode == 0


def test_a_waiter_is_told_where_the_run_was_started(place: Box) -> None:
    run = started(place)
    waiter = place.start("--", "true")
    where = f"(pid {run.pid}, in {place.project})"
    wait_for(lambda: where in place.heard(waiter), 20, where)
    place.finish(run, input="\n")
    assert place.finish(waiter).returncode == 0


def test_relative_names_count_from_there_after_the_run_too(place: Box) -> None:
    script = place.project / "tool"
    script.write_text("#!/nowhere/at/all\n")
    script.chmod(0o755)
    done = place.run("--", "./tool")
    assert done.returncode == 127
    assert "but the interpreter that its first line (#!) names does not" in done.stderr


@whole_host
def test_a_relative_git_dir_counts_from_there_after_the_run_too(place: Box) -> None:
    subprocess.run(["git", "init", "-q"], cwd=place.project, check=True)
    lock = place.project / ".git/index.lock"
    done = place.run("--", "sh", "-c", "touch .git/index.lock; kill -9 $$", env={"GIT_DIR": ".git"})
    assert done.returncode == 137
    # Else nothing proves that all are dead.
    healed = place.env.get("SANDRUN_BACKEND") != "none" and not ON_MACOS
    assert lock.exists() != healed, done.stderr

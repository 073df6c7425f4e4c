"""The groups of runs on hosts without systemd, or without the freezer of cgroup v1.

Runs as root in the laboratory: vagrant/lab run [--kernel hybrid] -- pytest -m vm tests/vm
"""

import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.contract import test_contract as contract
from tests.harness import Box, launcher

LAB = os.environ.get("SANDRUN_LAB", "")
GROUPS = Path("/sys/fs/cgroup")

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(not LAB, reason="runs inside vagrant/lab"),
    pytest.mark.skipif(os.geteuid() != 0, reason="makes users and mounts: runs as root"),
]
v2 = pytest.mark.skipif(LAB != "v2", reason="about cgroup v2")
hybrid = pytest.mark.skipif(LAB != "hybrid", reason="about cgroup v2")  # beside v1


def in_namespace(mount: str) -> "list[str]":
    """A command prefix: run in a new mount namespace, after the command `mount`."""
    return ["unshare", "-m", "sh", "-c", f'{mount} && exec "$@"', "sh"]


# Its presence tells sandrun that systemd manages the groups (sd_booted(3)).
NO_SYSTEMD = in_namespace("mount -t tmpfs none /run/systemd")
PLACE = ["sandrun", "-v", "--", "cat", "/proc/self/cgroup"]


def found(*command: str) -> "tuple[str, str]":
    """The group of the command of a run, and the run's stderr."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 0, done.stderr
    return done.stdout.removeprefix("0::").strip(), done.stderr


def gone(group: str) -> bool:
    return not Path(f"{GROUPS}{group}").parent.exists()


@v2
def test_a_systemd_outside_our_pid_namespace_is_not_used() -> None:
    """It would move the process that has our pid there."""
    apart = ["unshare", "--pid", "--fork", "--mount-proc", "sandrun", "--backend", "systemd"]
    done = subprocess.run([*apart, "--", "true"], capture_output=True, text=True, check=False)
    assert done.returncode == 125
    assert "systemd is outside our pid namespace" in done.stderr


@v2
def test_root_without_systemd_uses_a_group_above_its_own() -> None:
    group, said = found(*NO_SYSTEMD, *PLACE)
    assert "backend cgroup2" in said
    # Not below /system.slice/lab.service, which has processes: above it.
    assert re.fullmatch(r"/system.slice/sandrun-\w+/main", group)
    assert gone(group)


@v2
def test_root_without_systemd_in_the_root_group() -> None:
    to_root = ["sh", "-c", f'echo 0 >{GROUPS}/cgroup.procs && exec "$@"', "sh"]
    group, said = found(*NO_SYSTEMD, *to_root, *PLACE)
    assert "backend cgroup2" in said
    assert re.fullmatch(r"/sandrun-\w+/main", group)
    assert gone(group)


@pytest.fixture
def crowded() -> "Iterator[Path]":
    """A group with a process, directly below the root, and a group below it."""
    outer = Path(tempfile.mkdtemp(prefix="test-", dir=GROUPS))
    inner = outer / "inner"
    inner.mkdir()
    sleeper = subprocess.Popen(
        ["sh", "-c", f"echo 0 >{outer}/cgroup.procs; echo; exec sleep 1000"], stdout=subprocess.PIPE
    )
    with sleeper:
        assert sleeper.stdout
        sleeper.stdout.readline()
        yield inner
        sleeper.kill()
    inner.rmdir()
    outer.rmdir()


@v2
def test_root_without_systemd_skips_groups_with_processes(crowded: Path) -> None:
    enter = ["sh", "-c", f'echo 0 >{crowded}/cgroup.procs; "$@"', "sh"]
    group, said = found(*NO_SYSTEMD, *enter, *PLACE)
    assert "backend cgroup2" in said
    assert re.fullmatch(r"/sandrun-\w+/main", group)


@v2
def test_root_without_systemd_does_not_escape_an_enclosing_limit() -> None:
    unit = ["systemd-run", "-q", "--scope", "-p", "MemoryMax=80M", "-p", "MemorySwapMax=0"]
    done = subprocess.run(
        [*unit, *NO_SYSTEMD, "sh", "-c", '"$@"; echo "code $?"', "sh", *PLACE],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
    )
    assert re.search(r"cgroup2: a run outside \S+ would escape memory.max = 83886080", done.stderr)
    assert "backend rlimit" in done.stderr
    assert "sandrun-" not in done.stdout
    assert done.stdout.endswith("code 0\n")


class _WithoutFreezer(Box):
    """A box in which no freezer of cgroup v1 is mounted."""

    def start(
        self, *args: "str | Path", argv: "list[str] | None" = None, **more: Any
    ) -> "subprocess.Popen[str]":
        hidden = in_namespace(f"umount {GROUPS}/freezer")
        return super().start(*args, argv=[*hidden, *(argv or launcher())], **more)


@pytest.fixture
def without_freezer(tmp_path: Path) -> "Iterator[Box]":
    box = _WithoutFreezer(tmp_path, "cgroup1")
    yield box
    box.close()


CASES: "dict[str, Callable[[Box], None]]" = {
    case.__name__.removeprefix("test_"): case
    for case in (
        contract.test_a_daemon_that_ignores_sigterm_is_killed,
        contract.test_a_fork_bomb_hits_the_pids_limit_and_is_gone,
        contract.test_supervisor_and_keeper_killed_together_nothing_lives,
        contract.test_supervisor_and_keepers_killed_together_the_next_run_cleans_up,
        contract.test_the_group_of_a_dead_run_is_ended_by_a_run_of_another_queue,
        contract.test_groups_are_removed,
    )
}
CASES |= {
    "the_limit": partial(contract.test_the_tree_dies_at_the_limit_and_is_named, backend="cgroup1"),
    "no_first_thread": partial(
        contract.test_a_process_without_its_first_thread_is_ended, backend="cgroup1", threads=5
    ),
    "no_first_thread_no_supervisor": partial(
        contract.test_after_sigkill_of_the_supervisor_no_thread_lives, backend="cgroup1"
    ),
    "sigkill_of_the_supervisor": partial(
        contract.test_after_sigkill_of_the_supervisor_nothing_lives, backend="cgroup1"
    ),
}


@hybrid
def test_without_a_freezer_the_run_has_a_v2_group(without_freezer: Box) -> None:
    done = without_freezer.run("--", "cat", "/proc/self/cgroup")
    run = without_freezer.records()[-1]["id"]
    assert re.search(rf"^0::/.*/sandrun-{run}/main$", done.stdout, re.M), done
    assert re.search(rf"^\d+:memory:/.*/sandrun-{run}$", done.stdout, re.M), done
    assert not contract.groups_of(str(run))


@hybrid
@pytest.mark.parametrize("case", CASES)
def test_the_contract_with_a_v2_group_instead_of_a_freezer(without_freezer: Box, case: str) -> None:
    """The contract's promises, with the second of the two ways to kill a tree on v1."""
    CASES[case](without_freezer)

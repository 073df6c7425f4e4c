"""The processes of a run are those of the picture in ARCHITECTURE.md."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness import ON_MACOS, Box, wait_for


def children(pid: int) -> "dict[str, list[int]]":
    """The children of a process, by their names."""
    found: dict[str, list[int]] = {}
    for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        try:
            name = Path(f"/proc/{word}/comm").read_text().strip()
        except FileNotFoundError:
            continue  # the keeper of the first instant, which exits
        found.setdefault(name, []).append(int(word))
    return found


def targets(pid: int) -> "set[str]":
    """What the descriptors of a process are open on: files by path, pipes by number."""
    folder = f"/proc/{pid}/fd"
    found = set()
    for name in os.listdir(folder):
        try:
            found.add(os.readlink(f"{folder}/{name}"))
        except FileNotFoundError:
            continue  # it was that of the listing, or is closed
    return found


@pytest.mark.parametrize("backend", ["rlimit", "auto"])
def test_the_processes_of_a_run(make_box: "Callable[[str], Box]", backend: str) -> None:
    if ON_MACOS:
        pytest.skip("not on macOS: no process renames itself, and there is no witness")
    box = make_box(backend)
    supervisor = box.hold("a").pid
    (state,) = box.directories()
    lock = state / "executor.lock"
    has_two = json.loads(lock.read_text())["backend"] != "rlimit"

    def complete() -> "tuple[int, ...]":
        below = children(supervisor)
        if not {"run-keeper", "run-witness", "sh"} <= below.keys():
            return ()
        return below["run-keeper"][0], below["run-witness"][0], below["sh"][0]

    keeper, witness, command = wait_for(complete, what="keeper, witness and command")
    group = os.getpgid(supervisor)
    assert (os.getpgid(witness), os.getpgid(command)) == (group, group)
    assert os.getsid(command) == os.getsid(supervisor)
    assert os.getsid(keeper) == keeper

    def second() -> "list[int]":
        """Another leader of a session that holds the run lock."""
        known = {supervisor, keeper, witness, command}
        names = [name for name in os.listdir("/proc") if name.isdecimal()]
        holders = []
        for pid in {int(name) for name in names} - known:
            try:
                leads = os.getsid(pid) == pid
                holders += [pid] if leads and str(lock) in targets(pid) else []
            except OSError:
                continue  # another user's, or it is gone
        return holders

    if has_two:
        (other,) = wait_for(second, what="a second keeper")
        assert Path(f"/proc/{other}/comm").read_text() == "run-keeper\n"
    else:
        assert second() == []
    for pid in (supervisor, keeper, command):
        assert str(lock) in targets(pid)
    pipes = {target for target in targets(supervisor) if target.startswith("pipe:")}
    assert pipes & targets(keeper)

    def has_only_its_pipes() -> bool:
        """At its start it also reads its own /proc/PID/stat."""
        found = targets(witness)
        return len(found) == 2 and found <= pipes

    wait_for(has_only_its_pipes)
    box.let("a")

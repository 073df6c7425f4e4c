"""The slice of a run: its name, and what becomes of it where the kernel has other limits."""

import sys
from pathlib import Path

import pytest

if sys.platform != "linux":
    pytest.skip("about systemd", allow_module_level=True)

from sandrun.backends import systemd_slice
from sandrun.model import MIB, Limits, Unusable

RUN = "0123abcd"


class Units:
    """A manager that writes what it accepts as the kernel stores it."""

    def __init__(self, folder: Path, *accepted: str, reachable: bool = True) -> None:
        self.folder = folder
        self.accepted = accepted
        self.reachable = reachable
        self.asked: list[dict[str, int]] = []

    def step_aside(self) -> None:
        raise AssertionError

    def stop(self, find: object, mode: str) -> None:
        raise AssertionError

    def change(self, unit: str, properties: "list[tuple[str, tuple[str, int]]]") -> None:
        if not self.reachable:
            raise Unusable("no bus")
        assert unit == self.folder.name
        self.asked.append({name: value for name, (_, value) in properties})
        for name, (_, value) in properties:
            if name in self.accepted:
                file = {"MemoryMax": "memory.max", "TasksMax": "pids.max"}[name]
                (self.folder / file).write_text(f"{value}\n")


@pytest.fixture
def group(tmp_path: Path) -> Path:
    """The slice of a run with 64 MiB and 40 processes."""
    path = tmp_path / f"app-sandrun_{RUN}.slice"
    path.mkdir()
    for name, value in (("memory.max", 96 * MIB), ("memory.swap.max", 0), ("pids.max", 56)):
        (path / name).write_text(f"{value}\n")
    return path


def limits() -> Limits:
    found = Limits(64 * MIB)
    found.pids = 40
    return found


def test_the_slice_of_a_run_is_known_by_its_name() -> None:
    name = systemd_slice.name_of("app-ci.slice", RUN)
    assert name == f"app-ci-sandrun_{RUN}.slice"
    scope = f"/a/app-ci.slice/{name}/sandrun-{RUN}.scope"
    assert systemd_slice.slice_of(scope) == f"/a/app-ci.slice/{name}"
    for other in (
        f"/a/app-ci.slice/sandrun-{RUN}.scope",
        f"/a/app-ci-sandrun_00000000.slice/sandrun-{RUN}.scope",
        "/a/app-ci-sandrun_builds.slice/sandrun-builds.scope",
        f"/a/sandrun_{RUN}.slice/sandrun-{RUN}.scope",
    ):
        assert systemd_slice.slice_of(other) == ""
    assert systemd_slice.name_of(f"{'a' * 240}.slice", RUN) == ""


def test_a_slice_with_the_limits_is_left_as_it_is(group: Path) -> None:
    units = Units(group)
    assert systemd_slice.is_limited(str(group), limits(), units)
    (group / "pids.max").write_text("50\n")  # a lower limit of the administrator's
    assert systemd_slice.is_limited(str(group), limits(), units)
    (group / "pids.max").unlink()  # no controller
    assert systemd_slice.is_limited(str(group), limits(), units)
    assert units.asked == []


def test_a_limit_that_the_kernel_does_not_have_is_set_again(group: Path) -> None:
    (group / "memory.max").write_text("max\n")
    units = Units(group, "MemoryMax")
    assert systemd_slice.is_limited(str(group), limits(), units)
    assert units.asked == [{"MemoryMax": 96 * MIB}]


def test_a_slice_that_does_not_take_a_limit_gets_none(group: Path) -> None:
    """Otherwise its limits would end processes of which the run knows nothing."""
    (group / "memory.max").write_text("max\n")
    units = Units(group)
    assert not systemd_slice.is_limited(str(group), limits(), units)
    assert units.asked[0] == {"MemoryMax": 96 * MIB}
    assert set(units.asked[1]) == {"MemoryMax", "MemorySwapMax", "TasksMax"}
    assert set(units.asked[1].values()) == {(1 << 64) - 1}
    assert not systemd_slice.is_limited(str(group), limits(), Units(group, reachable=False))

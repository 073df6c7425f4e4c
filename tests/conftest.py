"""Fixtures: `box`, an isolated place to run sandrun in (see `tests.harness`).

On Windows only what `_ON_WINDOWS` names is run; all else is skipped whole, and says why.
"""

import os
import re
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness import ON_MACOS, Box, adopt_orphans
from tests.summary import pytest_runtest_makereport as pytest_runtest_makereport
from tests.summary import pytest_terminal_summary as pytest_terminal_summary

if sys.platform == "linux":
    adopt_orphans()
# Started in the background of a script, or by nohup(1), we ignore some, as would all that the tests
# start; and a shell cannot trap what was ignored before it.
for _signum in (getattr(signal, name, signal.SIGINT) for name in ("SIGINT", "SIGQUIT", "SIGHUP")):
    if signal.getsignal(_signum) == signal.SIG_IGN:
        signal.signal(_signum, signal.SIG_DFL)

_ON_WINDOWS = (
    "windows/",
    *(f"unit/test_{name}.py" for name in ("job_object", "options", "windows_supervisor")),
)
_HERE = Path(__file__).parent


class _Elsewhere(pytest.Module):
    """A module of tests that are about processes, locks and signals of POSIX."""

    def collect(self) -> "Iterator[pytest.Item | pytest.Collector]":
        name = self.path.relative_to(_HERE).as_posix()
        pytest.skip(f"about POSIX: {name}", allow_module_level=True)


def pytest_pycollect_makemodule(
    module_path: Path, parent: pytest.Collector
) -> "pytest.Module | None":
    name = module_path.relative_to(_HERE).as_posix()
    if sys.platform != "win32" or name.startswith(_ON_WINDOWS):
        return None
    return _Elsewhere.from_parent(parent, path=module_path)


NOT_ON_MACOS = {
    r"the_first_instruction_already_runs_inside": "no process's limits can be read",
    r"(a_checkout_shared_by_two|a_run_inside_a_run_with_another_state)":
        "no list of who locks what",
    r"status_names_": "no list of who locks what",
    r"(shared_memory_counts_exactly_once|many_small_processes|processes_in_one_address_space)":
        "a footprint counts shared memory in each process",
    r"a_leak_of_a_gigabyte_a_second\[(memfd|unlinked)": "no memfd, no tmpfs",
    r"output_or_work_is_not_idleness.*end=": "no count of what a process writes",
    r"a_zombie_leader_with_live_threads": "no first thread ends alone",
    r"(what_cannot_die_is_reported|a_frozen_group)": "no freezer",
    r"the_fallback_is_reported_once": "nothing better was passed over",
    r"a_limit_on_processes_is_named": "no container of a kernel",
    r"whose_limit_was_hit": "no cgroups",
    r"pkill_by_name_does_not_hit": "no process renames itself",
    r"wakeups_of_dead_keepers": "no real-time signals, no events",
    r"an_orphan_without_environment_and_desc": "the known gap: see backends/rlimit_macos.py",
    r"(nothing_stays_as_a_zombie|several_chains_at_once|a_cleared_environment_does.*daemon)":
        "no subreaper: see backends/rlimit_macos.py",
    r"the_monitor_costs_little": "the stand-in for libproc costs more than libproc",
    r"every_signal_is_passed_on": "no SIGALRM, SIGPIPE, SIGXFSZ",
    r"the_background_of_a_script.*job control": "who started us is not told",
    r"(a_sandbox_inside_a_run|only_the_open_file)": "no namespaces, no list of who locks what",
    r"a_script_without_an_interpreter_line": "what a shell ignores cannot be read",
}  # fmt: skip
"""Tests, by the start of their names, of what macOS lacks, and what that is."""


def pytest_collection_modifyitems(items: "list[pytest.Item]") -> None:
    for item in items if ON_MACOS else ():
        for pattern, lack in NOT_ON_MACOS.items():
            if re.match(f"test_{pattern}", item.name):
                item.add_marker(pytest.mark.skip(reason=f"not on macOS: {lack}"))


@pytest.fixture
def make_box(tmp_path: Path) -> "Iterator[Callable[[str], Box]]":
    """Makes a box with a backend of the test's choice."""
    boxes: list[Box] = []

    def make(backend: str = "none") -> Box:
        root = tmp_path / f"box{len(boxes)}"
        root.mkdir()
        boxes.append(Box(root, backend))
        return boxes[-1]

    yield make
    for box in boxes:
        box.close()


@pytest.fixture
def open_box() -> Iterator[Box]:
    """A box that other users can enter; needs root, to be two users."""
    if os.geteuid() != 0:
        pytest.skip("needs root: runs as two different users")
    with tempfile.TemporaryDirectory(prefix="sandrun-test-") as scratch:
        os.chmod(scratch, 0o755)
        box = Box(Path(scratch))
        for directory in (box.state, box.home):
            directory.chmod(0o1777)
        yield box
        box.close()


@pytest.fixture
def box(make_box: "Callable[[str], Box]") -> Box:
    """A box whose runs are not contained: cheap, for all that is not about containment."""
    return make_box("none")

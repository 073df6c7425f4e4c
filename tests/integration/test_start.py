"""What a start costs, told by what it imports: deterministic, where a timing would not be."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sandrun.lifecycle import module_files
from tests.harness import ON_MACOS, ROOT, Box, wait_for

# Built in, or loaded by the interpreter before our first line.
FREE = {
    "_abc", "_codecs", "_frozen_importlib", "_frozen_importlib_external", "_imp", "_io",
    "_signal", "_thread", "_weakref", "_warnings", "_collections_abc", "_stat", "abc", "builtins",
    "codecs", "encodings", "encodings.aliases", "encodings.utf_8", "errno", "fcntl", "genericpath",
    "io", "itertools", "marshal", "os", "os.path", "posix", "posixpath", "stat", "sys", "time",
    "winreg", "zipimport", "_json", "_sha1", "_locale", "_bootlocale", "encodings.ascii",
}  # fmt: skip
OURS = {
    *("sandrun", "sandrun.bare", "sandrun.cli", "sandrun.history", "sandrun.messages"),
    "sandrun.model", "sandrun.importer",
    "sandrun.backends", "sandrun.backends.none", "sandrun.git", "sandrun.git.guard",
    *(f"sandrun.config{name}" for name in ("", ".options", ".project", ".settings", ".values")),
    *(f"sandrun.lifecycle{name}" for name in ("", ".admission", ".module_files", ".runner")),
    "sandrun.platform", "sandrun.platform.folders", "sandrun.platform.posix_spawn",
    *(f"sandrun.queue{name}" for name in ("", ".posix_queue", ".posix_run_lock")),
    *(f"sandrun.queue{name}" for name in (".queue", ".state")),
    *(f"sandrun.supervise{name}" for name in ("", ".posix_supervisor", ".supervisor")),
}  # fmt: skip

LATE = {"sandrun.supervise.witness"}
"""What is loaded beside a command that lasts an instant, as `true` does on a busy machine."""
RUNNING = {f"sandrun.{name}".replace("/", ".") for name in module_files.LATE}
"""What is loaded beside a command that lasts longer."""
FILES = {"sandrun.config.settings_files", "sandrun.platform.small_files"}
"""Where there is a file that may have settings."""


RUN = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from sandrun.cli import main; main()"


def started(box: Box, code: str, *words: str) -> set[str]:
    """The modules imported by `python -c code words`, as -X importtime lists them."""
    done = box.run(*words, argv=[sys.executable, "-I", "-S", "-X", "importtime", "-c", code])
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip() for line in lines[1:]}


def imported(box: Box, *words: str) -> set[str]:
    """... by a run, but for what this Python needs for any -c (linecache in 3.13)."""
    return started(box, RUN, *words) - started(box, "pass")


def test_the_hot_path_imports_nothing_that_costs(box: Box) -> None:
    assert imported(box, "--", "true") - FREE - LATE == OURS


@pytest.mark.parametrize("backend", ["auto", "rlimit"])
def test_no_backend_of_linux_needs_click_or_psutil(
    make_box: "Callable[[str], Box]", backend: str
) -> None:
    heavy = {"click", "psutil", "re", "json", "subprocess", "threading", "typing"}
    box = make_box(backend)
    # What ctypes itself needs (threading in 3.14) nobody can spare who calls the kernel.
    assert not imported(box, "--", "true") & heavy - started(box, "import ctypes")


@pytest.mark.parametrize(
    "text",
    [
        "[tool.other]\nmemory = 1\n",
        'tool = { other = { memory = 1 } }\n[project]\ndependencies = ["a", "sandrun==1"]\n',
    ],
)
def test_a_project_file_without_our_table_costs_no_toml_parser(box: Box, text: str) -> None:
    (box.project / "pyproject.toml").write_text(text)
    assert imported(box, "--", "true") - FREE - LATE == OURS | FILES


@pytest.mark.skipif(ON_MACOS, reason="not on macOS: /proc/PID/wchan")
@pytest.mark.parametrize("backend", ["none", "rlimit", "auto"])
def test_a_waiter_has_imported_what_its_turn_needs(
    make_box: "Callable[[str], Box]", backend: str
) -> None:
    box = make_box(backend)
    box.hold("first")
    argv = [sys.executable, "-I", "-X", "importtime", "-c", RUN]
    waiter = box.start("-v", "--", "true", argv=argv)
    wchan = Path(f"/proc/{waiter.pid}/wchan")
    wait_for(lambda: "poll" in wchan.read_text(), 20, "the waiter waits")
    box.let("first")
    done = box.finish(waiter)
    _, turn, after = done.stderr.partition(": acquired slot")
    assert turn, done.stderr
    lines = [line for line in after.splitlines() if line.startswith("import time:")]
    late = {line.rpartition("|")[2].strip() for line in lines}
    chosen = box.last_record()["backend"]
    if chosen not in ("none", "cgroup1"):
        late.discard("_ctypes")  # to adopt orphans, or to start the command by clone3
    if backend == "auto" and chosen not in ("cgroup1", "cgroup2"):  # after these had refused
        late = {name for name in late if not name.startswith("sandrun.backends.")} - {"resource"}
    assert late <= RUNNING, done.stderr

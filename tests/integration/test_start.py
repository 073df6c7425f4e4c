"""What a start costs, told by what it imports: deterministic, where a timing would not be."""

import sys
from collections.abc import Callable

import pytest

from tests.harness import ROOT, Box

# Built in, or loaded by the interpreter before our first line.
FREE = {
    "_abc", "_codecs", "_frozen_importlib", "_frozen_importlib_external", "_imp", "_io",
    "_signal", "_thread", "_weakref", "_warnings", "_collections_abc", "_stat", "abc", "builtins",
    "codecs", "encodings", "encodings.aliases", "encodings.utf_8", "errno", "fcntl", "genericpath",
    "io", "itertools", "marshal", "os", "os.path", "posix", "posixpath", "stat", "sys", "time",
    "winreg", "zipimport", "_json", "_sha1", "_locale", "_bootlocale", "encodings.ascii",
}  # fmt: skip
OURS = {
    "sandrun", "sandrun.backends", "sandrun.backends.none", "sandrun.cli", "sandrun.gitguard",
    "sandrun.history", "sandrun.messages", "sandrun.model", "sandrun.options",
    "sandrun.place", "sandrun.project", "sandrun.queue", "sandrun.runlock", "sandrun.runner",
    "sandrun.settings", "sandrun.spawn", "sandrun.supervisor", "sandrun.ticket", "sandrun.values",
}  # fmt: skip


def imported(box: Box, *words: str) -> set[str]:
    """The modules imported by a run, as -X importtime lists them."""
    start = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from sandrun.cli import main; main()"
    python = [sys.executable, "-I", "-S", "-X", "importtime", "-c", start]
    done = box.run(*words, argv=python)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip() for line in lines[1:]}


def test_the_hot_path_imports_nothing_that_costs(box: Box) -> None:
    assert imported(box, "--", "true") - FREE == OURS


@pytest.mark.parametrize("backend", ["auto", "rlimit"])
def test_no_backend_of_linux_needs_click_or_psutil(
    make_box: "Callable[[str], Box]", backend: str
) -> None:
    heavy = {"click", "psutil", "re", "json", "subprocess", "threading", "typing"}
    assert not imported(make_box(backend), "--", "true") & heavy


def test_a_project_file_without_our_table_costs_no_toml_parser(box: Box) -> None:
    (box.project / "pyproject.toml").write_text("[tool.other]\nmemory = 1\n")
    assert imported(box, "--", "true") - FREE == OURS

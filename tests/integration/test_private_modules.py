"""Private modules of the standard library are shortcuts: a Python without them is served too."""

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sandrun import model
from tests.harness import ROOT, Box, installed_env, wait_for

PUBLIC = {"__future__", "_thread"}
"""Documented, whatever their names look like."""
GONE = """if True:
    import ctypes, hashlib, json, signal, sys
    for name in ("_ctypes", "_json", "_sha1", "_signal"):
        sys.modules[name] = None
"""
"""They are gone; what is public has got hold of them, as it would of whatever replaced them."""
COMMAND = f"{GONE}\n    from sandrun.cli import main; main()"
SCRIPT = f"{GONE}\n    import runpy; runpy.run_path({str(ROOT / 'sandrun/bin/sandrun')!r})"

STARTS = [
    pytest.param([sys.executable, "-c", COMMAND], id="module"),
    pytest.param([sys.executable, "-c", SCRIPT], id="script"),
]


def unguarded(tree: ast.AST) -> Iterator[str]:
    """The private modules that are imported outside of a `try` with `except ImportError`."""
    for node in ast.iter_child_nodes(tree):
        caught = [ast.unparse(h.type or node) for h in getattr(node, "handlers", ())]
        if isinstance(node, ast.Try) and any("ImportError" in each for each in caught):
            continue
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        yield from (name for name in names if name.startswith("_") and name not in PUBLIC)
        yield from unguarded(node)


def test_each_import_of_a_private_module_has_another_way() -> None:
    files = [*(ROOT / "sandrun").rglob("*.py"), ROOT / "sandrun/bin/sandrun"]
    assert len(files) > 60
    found = {str(f.relative_to(ROOT)): [*unguarded(ast.parse(f.read_text()))] for f in files}
    assert {name: modules for name, modules in found.items() if modules} == {}


@pytest.mark.parametrize("argv", STARTS)
@pytest.mark.parametrize("backend", ["none", "rlimit", "auto"])
def test_a_run_is_queued_limited_and_ended_without_them(
    make_box: "Callable[[str], Box]", backend: str, argv: "list[str]"
) -> None:
    box = make_box(backend)
    holder = box.start("--", *box.job("first"), argv=argv)
    box.begun("first")
    waiter = box.start("--", "sh", "-c", "exit 7", argv=argv)
    wait_for(lambda: "waiting" in box.heard(waiter), 20, "the second one waits")
    box.let("first")
    assert [box.finish(run).returncode for run in (holder, waiter)] == [0, 7]
    late = box.run("--timeout", "0.2", "--", "sleep", "60", argv=argv)
    assert late.returncode == model.EXIT_TIMEOUT, late.stderr
    told = box.start(
        "--", "sh", "-c", "trap 'exit 9' TERM; echo ready; sleep 60 >&2 & wait", argv=argv
    )
    assert told.stdout
    assert told.stdout.readline() == "ready\n"
    told.terminate()
    assert box.finish(told).returncode == 9
    assert [record["reason"] for record in box.records()] == ["exit", "exit", "timeout", "exit"]


def test_orphans_are_adopted_without_them(tmp_path: Path) -> None:
    script = f"""{GONE}
    import os, time
    sys.modules["prctl"] = None
    from sandrun.platform import processes
    assert processes.become_subreaper()
    if not os.fork():
        if not os.fork():
            time.sleep(0.1)
            os._exit(3)
        os._exit(0)
    print(sorted(os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(2)))
    """
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=installed_env({"PATH": "/usr/bin:/bin"}),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[0, 3]\n"

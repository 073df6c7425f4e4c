"""Many writers on one repository at once: with the guard all succeed and nothing is lost.

SANDRUN_TEST_GIT_WRITERS is `<writers>x<rounds>`, 8x4 unless set. Each writer is a process that
runs its git commands one after the other. Without the guard the same load must fail, or it shows
nothing; both are printed (pytest -s).
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.gitbox import GIT, GitBox
from tests.harness import SCALE

WRITERS, ROUNDS = map(int, os.environ.get("SANDRUN_TEST_GIT_WRITERS", "8x4").split("x"))


READS = ("status --short", "diff --stat", "describe --always --dirty")
"""Readers beside the writers: they refresh the index, which takes the lock that writers need."""


@pytest.fixture
def box(tmp_path: Path) -> Iterator[GitBox]:
    made = GitBox(tmp_path)
    origin = made.make(tmp_path / "origin")
    made.bare("remote", "add", "origin", origin)
    for number in range(WRITERS):
        (made.repo / f"f{number}").write_text("0\n")
    made.bare("add", ".")
    made.bare("commit", "-qm", "files")
    yield made
    made.close()


def _place(box: GitBox, writer: int) -> Path:
    """Rebasing needs a worktree that no other writer edits meanwhile."""
    return box.root / f"worktree{writer}" if writer % 10 == 7 else box.repo


def _steps(writer: int, turn: int) -> "list[list[str]]":
    """The commands of a writer in one round: a commit of its file, and one of its kind."""
    name = f"w{writer}-{turn}"
    new = f"../new-{name}"
    extra = [
        [["branch", name], ["branch", "-D", name]],
        [["tag", name], ["tag", "-d", name], ["tag", name]],
        [["log", "-1"], ["update-ref", f"refs/x/{name}", "HEAD"], ["pack-refs", "--all"]],
        [["gc", "-q"]],
        [["fetch", "-q", "origin"], ["fetch", "-q", "--prune", "origin"]],
        [["worktree", "add", "-q", new, "-b", name], ["worktree", "remove", "-f", new]],
        [["config", f"w.{name}", "x"], ["status", "--short"], ["config", "--unset", f"w.{name}"]],
        [["rebase", "-q", "main"], ["notes", "add", "-f", "-m", name, "HEAD"]],
        [["stash", "push", "-q", "-u", "--", f"s{writer}"], ["stash", "drop", "-q"]],
        [["checkout", "-q", "HEAD", "--", f"f{writer}"], ["reflog", "expire", "--all"]],
    ][writer % 10]
    file = f"f{writer}"
    return [["add", file], ["commit", "-q", "--allow-empty", "-m", name, file], *extra]


class Load:
    """The whole load, run with a given git: what failed, and how long it took."""

    def __init__(self, box: GitBox, git: list[str]) -> None:
        self.box = box
        self.git = git
        self.env = {**box.env, "SANDRUN_GIT_WAIT": str(600 * SCALE)}
        self.failed: list[str] = []
        self.commands = 0
        for writer in range(7, WRITERS, 10):
            place = _place(box, writer)
            box.bare("worktree", "add", "-q", place, "-b", place.name)
        began = time.monotonic()
        with ThreadPoolExecutor(WRITERS + len(READS)) as pool:
            self.writing = True
            reading = [pool.submit(self._read, line.split()) for line in READS]
            list(pool.map(self._write, range(WRITERS)))
            self.writing = False
            for reader in reading:
                reader.result()
        self.seconds = time.monotonic() - began
        names = {f"w{writer}-{turn}" for writer in range(WRITERS) for turn in range(ROUNDS)}
        self.missing = names - set(box.bare("log", "--format=%s", "--branches").split("\n"))

    def _write(self, writer: int) -> None:
        place = _place(self.box, writer)
        for turn in range(ROUNDS):
            (place / f"f{writer}").write_text(f"{turn + 1}\n")
            if writer % 10 == 8:
                (place / f"s{writer}").write_text(f"{turn}\n")
            for words in _steps(writer, turn):
                self._run(words, place)

    def _read(self, words: "list[str]") -> None:
        """Repeatedly, with a file touched so that the index must be refreshed."""
        while self.writing:
            os.utime(self.box.repo / "a")
            self._run(words, self.box.repo)

    def _run(self, words: "list[str]", place: Path) -> None:
        done = subprocess.run(
            [*self.git, *words],
            cwd=place,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=1200 * SCALE,
            check=False,
        )
        self.commands += 1
        if done.returncode:
            self.failed.append(f"{' '.join(words)}: {done.stderr.strip()[:900]}")

    def tell(self, how: str) -> None:
        """Print the result."""
        print(
            f"\n{WRITERS} writers x {ROUNDS} rounds, {how}: {len(self.failed)} of {self.commands}"
            f" commands failed, {len(self.missing)} of {WRITERS * ROUNDS} commits missing,"
            f" {self.seconds:.1f} s"
        )


def test_with_and_without_the_guard(box: GitBox) -> None:
    copy = Path(shutil.copytree(box.root, box.root.with_name("unguarded"), symlinks=True))

    load = Load(box, [sys.executable, "-m", "sandrun", "git"])
    load.tell("guarded")
    assert load.failed == []
    assert load.missing == set()
    box.bare("fsck", "--strict", "--full")
    assert box.bare("status", "--short", "--untracked-files=no") == ""

    box.root, box.repo = copy, copy / "repo"
    box.bare("remote", "set-url", "origin", str(copy / "origin"))
    load = Load(box, [GIT])
    load.tell("not guarded")
    for line in sorted({line[:110].replace("\n", " ") for line in load.failed})[:5]:
        print("   ", line)
    assert load.failed, "without the guard this load fails, or it shows nothing"

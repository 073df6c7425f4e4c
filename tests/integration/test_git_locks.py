"""Commands that need no turn take none of git's locks, according to strace(1)."""

from pathlib import Path

from tests.gitbox import GitBox
from tests.peers import git_locks


def test_reading_commands_take_no_lock(tmp_path: Path) -> None:
    box = GitBox(tmp_path)
    top = git_locks.prepared(box)
    wrong = {}
    ended = set()
    for line in git_locks.lines(git_locks.READING):
        seen = git_locks.observe(box, top, line)
        if seen.wrong:
            wrong[" ".join(line)] = seen.wrong
        if seen.code == 0:
            ended.add(" ".join(line))
    box.close()
    assert wrong == {}
    assert len(ended) > 55, "this git refuses many of them"
    assert {"status", "apply --check --cached ../p", "push --dry-run origin main"} <= ended


def test_a_lock_of_a_reading_command_would_be_found(tmp_path: Path) -> None:
    """The check can fail: here a writing command is classified as reading."""
    box = GitBox(tmp_path)
    top = git_locks.prepared(box)
    seen = git_locks.observe(box, top, ["commit", "-qam", "x"])
    box.close()
    assert (seen.code, seen.wrong) == (0, [])
    assert {"index.lock", "HEAD.lock", "refs/heads/main.lock"} <= set(seen.made)
    seen.needs = 0
    assert "index.lock" in seen.wrong

"""Whose code the workflows of .github run; what else may be wrong in them, lint's zizmor says."""

import re

from tests.harness import ROOT

USES = re.compile(r"uses: (\S+)(.*)")


def test_each_action_is_of_one_commit_and_says_its_version() -> None:
    """A tag can be moved by whoever owns the action, or has taken it over."""
    commits: dict[str, set[str]] = {}
    for file in (ROOT / ".github/workflows").glob("*.yml"):
        for what, comment in USES.findall(file.read_text(encoding="utf-8")):
            if what.startswith("./"):
                continue
            name, _, commit = what.partition("@")
            assert re.fullmatch(r"[0-9a-f]{40}", commit), (file, what)
            assert re.fullmatch(r" # v\d+\.\d+\.\d+", comment), (file, what)
            commits.setdefault(name, set()).add(commit)
    assert {"actions/checkout", "pypa/gh-action-pypi-publish"} <= set(commits)
    assert all(len(found) == 1 for found in commits.values()), commits

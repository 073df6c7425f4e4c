"""The repository of a command: every way to name one, compared with `git rev-parse`."""

import os
import subprocess
from pathlib import Path

import pytest

from sandrun.git import classify, repository, wrapper
from tests.gitbox import GIT, GitBox, git_version


def _git_says(
    box: GitBox, cwd: Path, options: list[str], env: dict[str, str]
) -> "list[str] | None":
    """The git directory, common directory and index as real paths; None: git finds none."""
    answers = []
    for question in (["--git-dir"], ["--git-common-dir"], ["--git-path", "index"]):
        done = subprocess.run(
            [GIT, *options, "rev-parse", *question],
            cwd=cwd,
            env={**box.env, **env},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            return None
        # Relative paths are relative to git's directory after its -C options.
        directories = classify.parse([*options, "x"]).directories
        answers.append(os.path.realpath(os.path.join(cwd, *directories, done.stdout.strip())))
    return answers


def _we_say(
    box: GitBox,
    monkeypatch: pytest.MonkeyPatch,
    cwd: Path,
    options: list[str],
    env: dict[str, str],
) -> "list[str] | None":
    monkeypatch.chdir(cwd)
    found = wrapper._repository(classify.parse([*options, "add"]), {**box.env, **env})
    if found is None:
        return None
    return [found.git_dir, found.common_dir, os.path.realpath(found.index)]


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> GitBox:
    """Repositories of every kind in one place."""
    box = GitBox(tmp_path_factory.mktemp("zoo"))
    root = box.root
    box.make(root / "sha256", "--object-format=sha256")
    box.make(root / "separate", f"--separate-git-dir={root}/elsewhere.git")
    box.bare("clone", "-q", "--bare", box.repo, root / "bare.git", cwd=root)
    box.bare("worktree", "add", "-q", root / "linked", "-b", "side")
    box.bare("worktree", "add", "-q", root / "from-bare", "main", cwd=root / "bare.git")
    box.bare("submodule", "--quiet", "add", root / "sha1-sub", "sub", cwd=_super(box))
    (root / "link-to-repo").symlink_to(box.repo)
    (box.repo / "deep/er").mkdir(parents=True)
    (root / "linked/deep").mkdir()
    (root / "nothing").mkdir()
    broken = root / "broken"
    (broken / ".git").mkdir(parents=True)
    lost = box.repo / "lost"
    lost.mkdir()
    (lost / ".git").write_text("gitdir: /nowhere\n")
    (box.repo / "half/.git").mkdir(parents=True)
    box.bare("worktree", "add", "-q", root / "detached", "--detach")
    return box


def _super(box: GitBox) -> Path:
    box.make(box.root / "sha1-sub")
    return box.make(box.root / "super")


WAYS: "list[tuple[str, list[str], dict[str, str]]]" = [
    ("repo", [], {}),
    ("repo/deep/er", [], {}),
    ("repo/.git", [], {}),
    ("repo/.git/refs", [], {}),
    ("repo/half", [], {}),
    ("repo/lost", [], {}),
    ("link-to-repo/deep", [], {}),
    ("linked", [], {}),
    ("linked/deep", [], {}),
    ("detached", [], {}),
    ("bare.git", [], {}),
    ("bare.git/refs", [], {}),
    ("from-bare", [], {}),
    ("separate", [], {}),
    ("elsewhere.git", [], {}),
    ("sha256", [], {}),
    ("super/sub", [], {}),
    ("super/.git/modules/sub", [], {}),
    ("nothing", [], {}),
    ("broken", [], {}),
    (".", ["-C", "repo"], {}),
    (".", ["-C", "repo", "-C", "deep"], {}),
    (".", ["-C", ""], {}),
    ("repo", ["-C", "../linked"], {}),
    (".", ["--git-dir=repo/.git"], {}),
    (".", ["--git-dir", "repo/.git", "--work-tree", "repo"], {}),
    (".", ["--git-dir=linked/.git"], {}),
    (".", ["--git-dir=bare.git"], {}),
    (".", ["-C", "repo", "--git-dir=.git"], {}),
    ("repo", ["--git-dir=../nowhere"], {}),
    ("bare.git", ["--bare"], {}),
    ("repo", ["--bare"], {}),
    ("repo", ["-c", "core.bare=false"], {}),
    (".", [], {"GIT_DIR": "repo/.git"}),
    ("repo/deep", [], {"GIT_DIR": "../.git", "GIT_WORK_TREE": ".."}),
    ("nothing", [], {"GIT_DIR": "../repo/.git", "GIT_WORK_TREE": "../repo"}),
    ("linked", [], {"GIT_DIR": "../repo/.git"}),
    ("repo", ["--git-dir=../linked/.git"], {"GIT_DIR": "nowhere"}),
    ("repo", [], {"GIT_INDEX_FILE": "other-index"}),
    ("repo/deep", [], {"GIT_INDEX_FILE": ".git/index.other"}),
    ("repo/deep", [], {"GIT_INDEX_FILE": "/dev/shm/index"}),
    ("repo/deep", [], {"GIT_DIR": "../.git", "GIT_WORK_TREE": "..", "GIT_INDEX_FILE": "i"}),
    ("linked", [], {"GIT_COMMON_DIR": "{root}/repo/.git"}),
    ("linked", [], {"GIT_DIR": "{root}/repo/.git/worktrees/linked"}),
    ("repo/deep", [], {"GIT_CEILING_DIRECTORIES": "{root}/repo"}),
    ("repo/deep", [], {"GIT_CEILING_DIRECTORIES": "{root}/repo/deep"}),
    ("repo/deep/er", [], {"GIT_CEILING_DIRECTORIES": "/x:{root}/repo/deep"}),
    ("repo", [], {"GIT_OBJECT_DIRECTORY": "{root}/repo/.git/objects"}),
]


@pytest.mark.parametrize(("where", "options", "env"), WAYS, ids=str)
def test_the_repository_is_the_one_that_git_finds(
    zoo: GitBox,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    options: list[str],
    env: dict[str, str],
) -> None:
    env = {name: value.format(root=zoo.root) for name, value in env.items()}
    cwd = zoo.root / where
    expected = _git_says(zoo, cwd, options, env)
    assert _we_say(zoo, monkeypatch, cwd, options, env) == expected


def test_git_finds_a_repository_in_most_cases(zoo: GitBox) -> None:
    """Otherwise the comparison would pass if git found none anywhere."""
    found = 0
    for where, options, template in WAYS:
        env = {name: value.format(root=zoo.root) for name, value in template.items()}
        found += _git_says(zoo, zoo.root / where, options, env) is not None
    assert found >= len(WAYS) - 12


def test_reftable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made by hand as in gitrepository-layout(5) and reftable.txt, because older versions of git
    cannot make one; and made by git itself if it can."""
    git_dir = tmp_path / "r/.git"
    for name in ("objects", "refs", "reftable"):
        (git_dir / name).mkdir(parents=True)
    (git_dir / "HEAD").write_text("ref: refs/heads/.invalid\n")
    (git_dir / "refs/heads").write_text("this repository uses the reftable format\n")
    found = repository.find(str(tmp_path / "r"), {})
    assert found is not None
    assert found.git_dir == str(git_dir)
    if git_version() >= (2, 45):
        box = GitBox(tmp_path)
        path = box.make(tmp_path / "reftable", "--ref-format=reftable")
        assert _we_say(box, monkeypatch, path, [], {}) == _git_says(box, path, [], {})


def test_a_deleted_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert wrapper._repository(classify.parse(["add"]), {}) is None

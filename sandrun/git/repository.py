"""The repository of a git command, found from files as git finds it.

Promises the git directory, common directory and index that git would use, for every way to name a
repository: discovery from a directory, `.git` files (linked worktrees, submodules), bare
repositories and the GIT_* variables (gitrepository-layout(5), git(1), setup.c). Starting `git
rev-parse` instead would cost as much as the guarded command; the tests compare with it.

Leaves to git whether it trusts the repository (safe.directory) and understands its format.
"""

import os

from sandrun.platform.small_files import read_small

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping


class Repository:
    """A repository as seen from one worktree; all paths are real paths.

    `git_dir` has the index and HEAD. `common_dir` has what linked worktrees share: refs, packs and
    config; in a main worktree both are the same. `top` is the worktree's root, else the git
    directory.
    """

    __slots__ = ("common_dir", "git_dir", "index", "top")

    def __init__(self, git_dir: str, common_dir: str, top: str, index: str) -> None:
        self.git_dir = git_dir
        self.common_dir = common_dir
        self.top = top
        self.index = index


def find(cwd: str, env: "Mapping[str, str]") -> "Repository | None":
    """The repository of a git that starts in `cwd` with the environment `env`, or None."""
    named = env.get("GIT_DIR", "")
    if named:
        git_dir = follow(os.path.join(cwd, named))
        if not is_git_dir(git_dir, env):
            return None
        top = _work_tree(cwd, env) or cwd
    else:
        git_dir, top = _discover(cwd, env)
        if not git_dir:
            return None
        top = _work_tree(cwd, env) or top
    common = _common_dir(git_dir, env)
    index = os.path.join(top, env.get("GIT_INDEX_FILE") or os.path.join(git_dir, "index"))
    return Repository(os.path.realpath(git_dir), os.path.realpath(common), top, index)


def _work_tree(cwd: str, env: "Mapping[str, str]") -> str:
    """The root named by GIT_WORK_TREE, to which git changes if it starts inside."""
    named = env.get("GIT_WORK_TREE", "")
    if not named:
        return ""
    top = os.path.realpath(os.path.join(cwd, named))
    here = os.path.realpath(cwd)
    return top if here == top or here.startswith(top.rstrip("/") + "/") else here


def _discover(cwd: str, env: "Mapping[str, str]") -> "tuple[str, str]":
    """Walk up from `cwd`; return the git directory and the worktree's root, or ('', '')."""
    here = os.path.realpath(cwd)
    ceilings = {
        os.path.realpath(path) for path in env.get("GIT_CEILING_DIRECTORIES", "").split(":") if path
    }
    device = _device(here) if not env.get("GIT_DISCOVERY_ACROSS_FILESYSTEM") else None
    while True:
        dot_git = os.path.join(here, ".git")
        git_dir = follow(dot_git)
        if is_git_dir(git_dir, env):
            return git_dir, here
        if git_dir != dot_git:  # git refuses a .git file without a valid target
            return "", ""
        if is_git_dir(here, env):
            return here, here
        parent = os.path.dirname(here)
        if parent == here or parent in ceilings:
            return "", ""
        if device is not None and _device(parent) != device:
            return "", ""
        here = parent


def _device(path: str) -> "int | None":
    try:
        return os.stat(path).st_dev
    except OSError:
        return None


def follow(path: str) -> str:
    """The target of a `.git` file (`gitdir: PATH`, relative to the file); else `path` itself."""
    line = first_line(path) if os.path.isfile(path) else ""
    if line.startswith("gitdir: "):
        return os.path.join(os.path.dirname(path), line[8:])
    return path


def first_line(path: str) -> str:
    """The text of a small file without line ends; '' if it cannot be read. As for git, which is
    written in C, it ends at a NUL; no path contains one."""
    try:
        data = read_small(path) or b""
        return os.fsdecode(data.partition(b"\0")[0]).rstrip("\r\n")
    except OSError:
        return ""


def _common_dir(git_dir: str, env: "Mapping[str, str]") -> str:
    named = env.get("GIT_COMMON_DIR")
    if named:
        return named
    line = first_line(os.path.join(git_dir, "commondir"))
    return os.path.join(git_dir, line) if line else git_dir


def is_git_dir(path: str, env: "Mapping[str, str]") -> bool:
    """Whether git accepts a directory: a valid HEAD, objects and refs (setup.c)."""
    head = os.path.join(path, "HEAD")
    try:
        target = os.readlink(head)
        if not target.startswith("refs/"):
            return False
    except FileNotFoundError:
        return False
    except OSError:  # a regular file, nearly always
        line = first_line(head)
        name = line[4:].lstrip() if line.startswith("ref:") else ""
        if not name.startswith("refs/") and not _is_hash(line):
            return False
    common = _common_dir(path, env)
    objects = env.get("GIT_OBJECT_DIRECTORY") or os.path.join(common, "objects")
    return os.access(objects, os.X_OK) and os.access(os.path.join(common, "refs"), os.X_OK)


def _is_hash(line: str) -> bool:
    return len(line) in (40, 64) and not line.strip("0123456789abcdefABCDEF")


def head_ref(repo: Repository) -> str:
    """The branch that HEAD points to, such as `refs/heads/main`; '' if it is detached."""
    line = first_line(os.path.join(repo.git_dir, "HEAD"))
    return line[4:].strip() if line.startswith("ref:") else ""

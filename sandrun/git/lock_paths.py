"""Where git creates lock files: in a repository, in those that share its files, and for its user.

Source: git 2.39 to 2.55, each caller of hold_lock_file_for_update() and the like, and the tempfiles
that lock refs and reftables. git locks `FILE` by `FILE.lock`, since 2.54 with `FILE~pid.lock`
beside it. Invariant: only paths that git uses count. No ref or directory of refs may end in .lock
(git-check-ref-format(1)), but a file in a worktree may, so `.gitmodules.lock` is the only one
there.

Locks on files named on a command line (`bundle create`, marks of `fast-import`, `config --file`)
are not included, because only the user knows where they are.
"""

import os

from sandrun.git import repository
from sandrun.git.repository import Repository

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_SUFFIX = ".lock"
_TOP = frozenset(
    ("config", "config.worktree", "fsmonitor--daemon.ipc", "gc.log", "gc.pid", "packed-refs",
     "shallow")
)  # fmt: skip
"""Files in a git directory, besides indexes (`index`, `next-index-1`, `index.stash.1`) and names in
capitals (HEAD, MERGE_HEAD and other pseudo-refs, MERGE_RR, MERGE_MSG)."""
_FLAT = (
    *("info", "objects", "objects/info", "objects/info/commit-graphs", "objects/pack"),
    *("objects/pack/multi-pack-index.d", "rebase-apply", "rebase-merge", "sequencer"),
)
_DEEP = ("refs", "logs", "reftable")


def every_lock(repo: Repository, env: "Mapping[str, str]") -> "dict[str, Repository | None]":
    """The existing lock files, each with the repository whose git commands may own it; None: any
    git, because the file is the user's."""
    found: dict[str, Repository | None] = {}
    for each in _family(repo):
        for path in _in_repository(each):
            found.setdefault(path, each)
    return found | dict.fromkeys(_of_user(env))


def _family(repo: Repository) -> "Iterator[Repository]":
    """The repository, its other worktrees, and its submodules with theirs (below `modules`)."""
    yield repo
    for name in entries(os.path.join(repo.common_dir, "worktrees")):
        git_dir = os.path.join(repo.common_dir, "worktrees", name)
        if git_dir != repo.git_dir and repository.is_git_dir(git_dir, {}):
            yield _with_default_index(git_dir, repo.common_dir)
    if repo.git_dir != repo.common_dir and repository.is_git_dir(repo.common_dir, {}):
        yield _with_default_index(repo.common_dir, repo.common_dir)
    for top in dict.fromkeys((repo.git_dir, repo.common_dir)):
        for module in _modules(os.path.join(top, "modules")):
            yield from _family(_with_default_index(module, module))


def _with_default_index(git_dir: str, common_dir: str) -> Repository:
    named = os.path.join(git_dir, "gitdir")  # in a linked worktree: the path of its `.git` file
    link = repository.first_line(named) if os.path.isfile(named) else ""
    top = os.path.dirname(link) or git_dir
    return Repository(git_dir, common_dir, top, os.path.join(git_dir, "index"))


def _modules(folder: str) -> "Iterator[str]":
    """The git directories below `folder`; the name of a submodule may have slashes."""
    for name in entries(folder):
        path = os.path.join(folder, name)
        if not os.path.isdir(path) or os.path.islink(path):
            continue
        if repository.is_git_dir(path, {}):
            yield path
        else:
            yield from _modules(path)


def _in_repository(repo: Repository) -> "Iterator[str]":
    if os.path.lexists(repo.index + _SUFFIX):
        yield repo.index + _SUFFIX
    yield from _of_submodules(repo)
    for top in dict.fromkeys((repo.git_dir, repo.common_dir)):
        yield from (path for path in _locks_in(top) if _is_git_lock(os.path.basename(path)))
        for name in _FLAT:
            yield from _locks_in(os.path.join(top, name))
        for name in _DEEP:
            for folder, folders, _ in os.walk(os.path.join(top, name)):
                folders.sort()
                yield from _locks_in(folder)


def _of_submodules(repo: Repository) -> "Iterator[str]":
    """The lock of `.gitmodules`, which lies in the worktree."""
    path = os.path.join(repo.top, ".gitmodules" + _SUFFIX)
    if repo.top != repo.git_dir and os.path.isfile(path):
        yield path


def _is_git_lock(name: str) -> bool:
    base = name.removesuffix(_SUFFIX).removesuffix("~pid")
    if base in _TOP or base == "index" or base.startswith(("next-index-", "index.stash.")):
        return True
    return base.isupper() and base.replace("_", "").replace("-", "").isalnum()


def _locks_in(folder: str) -> "Iterator[str]":
    for name in entries(folder):
        path = os.path.join(folder, name)
        if name.endswith(_SUFFIX) and not os.path.isdir(path):
            yield path


def entries(folder: str) -> "list[str]":
    """The names in a folder, sorted; none if it cannot be read."""
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def user_files(env: "Mapping[str, str]") -> "list[str]":
    """The user's files that git writes: its configuration and git-credential-store(1)'s file."""
    home = env.get("HOME", "")
    config = env.get("XDG_CONFIG_HOME") or (os.path.join(home, ".config") if home else "")
    named = env.get("GIT_CONFIG_GLOBAL", "")
    files = [named] if named else []
    if home:
        files += [os.path.join(home, name) for name in (".gitconfig", ".git-credentials")]
    if config:
        files += [os.path.join(config, "git", name) for name in ("config", "credentials")]
    # git locks the target of a link: a .gitconfig may be in a folder of dotfiles.
    return list(dict.fromkeys(map(os.path.realpath, files)))


def _of_user(env: "Mapping[str, str]") -> "Iterator[str]":
    for file in user_files(env):
        for path in (file + _SUFFIX, file + "~pid" + _SUFFIX):
            if os.path.isfile(path):
                yield path

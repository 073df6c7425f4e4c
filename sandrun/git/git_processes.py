"""Which processes are active git commands of a repository: enclosing ones, and owners of a lock.

Both questions are answered with yes in case of doubt. We must never wait for an enclosing git, and
must never move the lock of a live one. So a process that cannot be read counts as a git of the
repository.
"""

import os
import sys

from sandrun.git import classify, lock_paths, repository
from sandrun.model import DARWIN
from sandrun.platform import processes

assert sys.platform != "win32"

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


def is_named_git(name: str) -> bool:
    """Whether a process of this name can be git (`git`, `git-submodule`, nix's `.git-wrapped`), or
    one of `other_tools`."""
    base = name.lstrip(".")
    return base in ("git", "jj") or base.startswith("git-")


def enclosing_git(repo: repository.Repository) -> int:
    """The pid of the nearest ancestor that is a git active in `repo` and may write; 0: none.

    The proof is the kernel's chain of parents, with the command line, directory and environment of
    each git. Our own environment is not trusted.
    """
    pid = os.getppid()
    while pid > 1:
        try:
            stat = processes.Stat(pid)
        except OSError:
            return 0
        if is_named_git(stat.name) and _works_in(pid, repo, reads_count=False):
            return pid
        pid = stat.parent
    return 0


def _works_in(pid: int, repo: "repository.Repository | None", reads_count: bool) -> bool:
    """Whether the git `pid` is active in `repo` or a worktree of it (None: on the user's own
    files); yes if it cannot be read."""
    try:
        words = processes.arguments(pid)
        if not words:  # a zombie, or a kernel thread
            return False
        command = _invocation(words)
        # A command unknown to git holds no turn and no lock, but its children may.
        passive = classify.needs(command) in (0, None)
        if classify.is_harmless(command) if reads_count else passive:
            return False
        if repo is None:
            return classify.writes_user_files(command) and _shares_user_files(pid)
        other = "" if DARWIN else os.readlink(f"{processes.PROC}/{pid}/ns/mnt")
        if other and other != os.readlink("/proc/self/ns/mnt"):
            return _shares_files(pid, repo)
        return any(_same(found, repo) for found in _repositories(pid, command))
    except FileNotFoundError:
        return False
    except ProcessLookupError:
        return False
    except OSError:
        return True


def _invocation(words: "list[str]") -> classify.Invocation:
    tool = os.path.basename(words[0]).lstrip(".").removesuffix("-wrapped")
    if tool in ("jj", "git-annex"):
        return classify.parse_other(tool, words[1:])
    return classify.parse(words[1:])


def _shares_files(pid: int, repo: repository.Repository) -> bool:
    """`_works_in` for a git in a container, whose paths mean nothing here: compare the directories
    that they lead to.

    git's current directory is the root of its worktree. Yes if no git directory is found there.
    """
    here = f"{processes.PROC}/{pid}/cwd"
    git_dir = here + "/.git"
    followed = repository.follow(git_dir)
    # The kernel resolves the path from the other's root.
    git_dir = followed if followed.startswith(here) else f"{processes.PROC}/{pid}/root{followed}"
    found = [git_dir] if os.path.isdir(git_dir) else [here]
    # The common directory of a linked worktree (`worktrees/NAME`) is two levels up.
    infos = [os.stat(path) for path in (*found, found[0] + "/../..")]
    ours = [os.stat(path) for path in (repo.git_dir, repo.common_dir)]
    if any((one.st_ino, one.st_dev) == (our.st_ino, our.st_dev) for one in infos for our in ours):
        return True
    named = b"GIT_DIR=" in processes.read(f"{processes.PROC}/{pid}/environ")
    return named or found == [here]


def _shares_user_files(pid: int) -> bool:
    """Whether the git `pid` writes the same user files as we; with another HOME it does not."""
    theirs = lock_paths.user_files(processes.environ(pid))
    return not set(theirs).isdisjoint(lock_paths.user_files(os.environ))


def _same(found: "repository.Repository | None", repo: repository.Repository) -> bool:
    return found is None or found.common_dir == repo.common_dir


def _repositories(
    pid: int, command: classify.Invocation
) -> "Iterator[repository.Repository | None]":
    """The repositories in which a running git may be active; None: one that cannot be determined.

    git has changed to the worktree's root, but relative names in its command line and initial
    environment count from where it started, which only PWD tells.
    """
    env = processes.environ(pid)
    here = processes.working_directory(pid).removesuffix(" (deleted)")
    start = os.path.join(env.get("PWD", here), *command.directories)
    env = {**env, **command.variables}
    named = env.get("GIT_DIR", "")
    found = [repository.find(cwd, env) for cwd in (here, start)]
    if named and not any(found):
        yield None
    for repo in found:
        if repo:
            yield repo


def possible_owners(repo: "repository.Repository | None", uid: int = -1) -> "list[int]":
    """The processes that may own a lock in `repo` (None: on the user's own files): every git active
    there that may write, and every git that cannot be examined.

    `uid` is the owner of the lock file: only that user's processes count if they cannot be
    examined."""
    return [pid for pid in _pids() if pid != os.getpid() and _may_own(pid, repo, uid)]


def _pids() -> "list[int]":
    """Every process; none without a /proc of ours, which `stale.blind_spots` then reports."""
    try:
        return [int(entry) for entry in os.listdir(processes.PROC) if entry.isdigit()]
    except OSError:
        return []


def _may_own(pid: int, repo: "repository.Repository | None", uid: int) -> bool:
    try:
        stat = processes.Stat(pid)
    except OSError:
        return False
    if stat.state in "ZX" or not (is_named_git(stat.name) or _runs_git(pid)):
        return False
    return _works_in(pid, repo, reads_count=True) and not (uid >= 0 and _is_of_another(pid, uid))


def _is_of_another(pid: int, uid: int) -> bool:
    """Whether a process that we may not examine creates files as another user than `uid`."""
    try:
        os.readlink(f"{processes.PROC}/{pid}/cwd")
        return False
    except OSError:
        pass
    try:
        status = processes.read(f"{processes.PROC}/{pid}/status")
        return int(status.partition(b"\nUid:")[2].split()[3]) != uid  # the fsuid (proc(5))
    except (OSError, IndexError, ValueError):
        return False


def _runs_git(pid: int) -> bool:
    """Whether a process with another name (`hub`, a renamed thread) executes git's file."""
    try:
        return is_named_git(os.path.basename(os.readlink(f"{processes.PROC}/{pid}/exe")))
    except OSError:
        return False


def is_housekeeping(pid: int) -> bool:
    """Whether the process is housekeeping that a git left in the background: `gc --auto`,
    `maintenance run --auto`. It ends by itself, and no other process does its work."""
    try:
        if not is_named_git(processes.Stat(pid).name):
            return False
        command = classify.parse(processes.arguments(pid)[1:])
    except OSError:
        return False
    background = not {"--auto", "--detach"}.isdisjoint(command.arguments)
    return background and command.word in ("gc", "maintenance")


def openers(path: str) -> "list[int]":
    """The processes that have the file at `path` open, as far as we may examine them."""
    try:
        wanted = os.stat(path, follow_symlinks=False)
    except OSError:
        return []
    return [pid for pid in _pids() if _has_open(f"{processes.PROC}/{pid}/fd", wanted)]


def _has_open(directory: str, wanted: os.stat_result) -> bool:
    try:
        for fd in os.listdir(directory):
            try:
                info = os.stat(f"{directory}/{fd}")
            except OSError:
                continue
            if (info.st_ino, info.st_dev) == (wanted.st_ino, wanted.st_dev):
                return True
    except OSError:
        pass
    return False


def text(pids: "list[int]") -> str:
    """The first live one of these processes, for a message: `git commit -a (pid 12, for 3 min)`."""
    for pid in pids:
        process = processes.describe(pid)
        if process:
            return f"{process.command} (pid {pid}, for {_age(pid)})"
    return ""


def _age(pid: int) -> str:
    from sandrun.model import span_text

    try:
        started = processes.Stat(pid).start / os.sysconf("SC_CLK_TCK")
        uptime = float(processes.read("/proc/uptime").split()[0])
    except OSError:
        return "an unknown time"
    return span_text(max(0.0, uptime - started))

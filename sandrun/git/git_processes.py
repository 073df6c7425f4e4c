"""Which processes are git at work in a repository: our ancestors, and possible owners of a lock.

Two questions with opposite ways to be wrong. An ancestor that might be a git of this repository
must never be waited for, so doubt says yes. A process that might own a lock must never be
robbed, so doubt says yes there too. Both therefore treat what cannot be read as git's.
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


def ancestor(repo: repository.Repository) -> int:
    """The nearest ancestor that is a git at work in `repo` and may write; its pid, or 0.

    The proof is the chain of parents as the kernel has it, with each git's own command line,
    directory and environment; nothing in our environment is believed.
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
    """Whether the git `pid` works in `repo` or a worktree of it (None: on the user's own files);
    yes if it cannot be read."""
    try:
        words = processes.arguments(pid)
        if not words:  # a zombie, or a kernel thread
            return False
        command = _invocation(words)
        # What git does not know holds no turn, nor a lock: what it starts does, here below it.
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
        from sandrun.git import other_tools

        return other_tools.parse(tool, words[1:])
    return classify.parse(words[1:])


def _shares_files(pid: int, repo: repository.Repository) -> bool:
    """The same for a git in a container, whose paths mean nothing here: by what they lead to.

    git stands at the root of its worktree. Yes, too, where nothing there leads to a git dir.
    """
    here = f"{processes.PROC}/{pid}/cwd"
    git_dir = here + "/.git"
    followed = repository.follow(git_dir)
    # The kernel, not we, walks from the other's root.
    git_dir = followed if followed.startswith(here) else f"{processes.PROC}/{pid}/root{followed}"
    found = [git_dir] if os.path.isdir(git_dir) else [here]
    # The common dir of a linked worktree (`worktrees/NAME`) is two above.
    infos = [os.stat(path) for path in (*found, found[0] + "/../..")]
    ours = [os.stat(path) for path in (repo.git_dir, repo.common_dir)]
    if any((one.st_ino, one.st_dev) == (our.st_ino, our.st_dev) for one in infos for our in ours):
        return True
    named = b"GIT_DIR=" in processes.read(f"{processes.PROC}/{pid}/environ")
    return named or found == [here]


def _shares_user_files(pid: int) -> bool:
    """Whether the git `pid` would write the same files of a user as we; another HOME has others."""
    theirs = lock_paths.user_files(processes.environ(pid))
    return not set(theirs).isdisjoint(lock_paths.user_files(os.environ))


def _same(found: "repository.Repository | None", repo: repository.Repository) -> bool:
    return found is None or found.common_dir == repo.common_dir


def _repositories(
    pid: int, command: classify.Invocation
) -> "Iterator[repository.Repository | None]":
    """Where a running git may be at work; None stands for a place that cannot be told.

    git has gone to the worktree's root by now, while relative names in its command line and
    first environment count from where it started: what it says of that is only PWD.
    """
    env = processes.environ(pid)
    here = processes.directory(pid).removesuffix(" (deleted)")
    start = os.path.join(env.get("PWD", here), *command.directories)
    env = {**env, **command.variables}
    named = env.get("GIT_DIR", "")
    found = [repository.find(cwd, env) for cwd in (here, start)]
    if named and not any(found):
        yield None
    for repo in found:
        if repo:
            yield repo


def at_work(repo: "repository.Repository | None", uid: int = -1) -> "list[int]":
    """The processes that may own a lock in `repo`: every git at work there that is not known to
    only read, and every git that cannot be examined. None: of a lock on the user's own files.

    `uid` is who made the lock: of the gits that cannot be examined, only that user's count."""
    return [pid for pid in _pids() if pid != os.getpid() and _may_own(pid, repo, uid)]


def _pids() -> "list[int]":
    """Every process; none where there is no /proc of ours, which `stale.blind_spots` then says."""
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
    """Whether a process that we may not look into makes its files as another user than `uid`."""
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
    """A git under another name (`hub`, a renamed thread) still runs git's file."""
    try:
        return is_named_git(os.path.basename(os.readlink(f"{processes.PROC}/{pid}/exe")))
    except OSError:
        return False


def is_housekeeping(pid: int) -> bool:
    """Whether the process is the housekeeping that a git has put in the background at its end:
    `gc --auto`, `maintenance run --auto`. It is finite, and done by nobody else."""
    try:
        if not is_named_git(processes.Stat(pid).name):
            return False
        command = classify.parse(processes.arguments(pid)[1:])
    except OSError:
        return False
    background = not {"--auto", "--detach"}.isdisjoint(command.arguments)
    return background and command.word in ("gc", "maintenance")


def openers(path: str) -> "list[int]":
    """The processes that hold the file at `path` open, as far as we may look."""
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
    """The first of these processes for people: `git commit -a (pid 12, for 3 min 20 s)`."""
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

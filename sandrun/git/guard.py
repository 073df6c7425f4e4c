"""The git guard: git operations of one repository wait for each other instead of failing.

Two parts. Before a run, `wait_quiet` lets a git that is at work finish, so that the run does not
see half a checkout. Around a git command, `sandrun git ARGS` (`command`) gives it a turn among
the guarded ones (`turn`), waits for git's own locks (`locks`), and then becomes the real git.

Promises
- git is always run, exactly once, at the latest when `git_wait` is over; its exit code, output,
  terminal and signals are its own, because nothing stays around it.
- A live lock is never touched (`stale`). A git around us (a hook in `git commit`) never blocks.
- Where nothing is in the way, nothing is said.
- Reading never waits (but `describe --dirty`, which locks the index whatever it is told, while the
  turns move on), and refreshes the index only where no guarded writer can meet the lock for that.
  So a reader can still meet a change half way, as without us: a `git stash list` beside the drop of
  the last stash fails.

Left to others: which real git a shim calls, and that hooks reach the shim at all. git puts its
own directory first in the PATH of what it starts, so most hooks call the real git: they are
inside a turn already.
"""

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from sandrun.git.repository import Repository

LOCAL_VARIABLES = (
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_CONFIG",
    "GIT_CONFIG_PARAMETERS",
    "GIT_OBJECT_DIRECTORY",
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_IMPLICIT_WORK_TREE",
    "GIT_GRAFT_FILE",
    "GIT_INDEX_FILE",
    "GIT_NO_REPLACE_OBJECTS",
    "GIT_REPLACE_REF_BASE",
    "GIT_PREFIX",
    "GIT_INTERNAL_SUPER_PREFIX",
    "GIT_SHALLOW_FILE",
    "GIT_COMMON_DIR",
    "GIT_QUARANTINE_PATH",
)
"""What hooks leak and what else ties a process to one repository: `git rev-parse --local-env-vars`
and the quarantine of a pre-receive hook. But not GIT_CONFIG_COUNT, which is no git's but the
user's: a CI's proxy, credentials, safe.directory. (What `git -c` sets is GIT_CONFIG_PARAMETERS.)"""

_PLACES = ("GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE")
_GUARDED = ("index", "HEAD")
_HOOKS_OWN = ("GIT_INDEX_FILE", "GIT_PREFIX")
_DANGEROUS = ("GIT_DIR", "GIT_WORK_TREE", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY")


def around(
    project: str, env: "Mapping[str, str]" = os.environ, here: str = os.curdir
) -> "Repository | None":
    """The repository that the gits of a run in `project` act on, with the variables of `env`; a
    relative GIT_DIR counts from `here`."""
    from sandrun.git.repository import find

    return find(here if env.get("GIT_DIR") else project, env)


def is_quiet(project: str) -> bool:
    """Whether certainly no git is at work in `project`: what nearly every run finds, for the
    price of four system calls. False: `wait_quiet` must look. There is no guard on Windows."""
    if sys.platform == "win32":
        return True
    import fcntl  # the queue has loaded it

    git = os.path.join(project, ".git")
    if any(name in os.environ for name in _PLACES):
        return False
    if os.path.isfile(git) or any(os.path.lexists(f"{git}/{name}.lock") for name in _GUARDED):
        return False
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        fd = os.open(git + "/sandrun-guard", flags)
    except OSError:
        return True
    try:
        # Shared and for an instant: a git that comes just now waits for that instant.
        fcntl.lockf(fd, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, 0)
        return True
    except OSError:
        return False
    finally:
        os.close(fd)


def wait_quiet(project: str, patience: float, mask: "set[int]") -> None:
    """Wait up to `patience` seconds for the git at work in `project`; warn if it goes on.

    `mask` is the caller's signal mask. Raises errors.Interrupted when a signal told us to go.
    """
    repo = around(project)
    if repo is None:
        return
    from sandrun.git import git_processes

    if git_processes.ancestor(repo):
        return
    from sandrun.git.waiter import Interruptible, Wait

    with Interruptible(mask):
        Wait(repo, patience, "going on without waiting").quiet()


def heal_after(
    project: str,
    since: float,
    run_id: str,
    env: "Mapping[str, str]" = os.environ,
    here: str = os.curdir,
) -> None:
    """Move aside the locks that a run's dead processes left (`stale.after_run`)."""
    if sys.platform == "win32":
        return
    repo = around(project, env, here)
    if repo:
        from sandrun.git import stale

        stale.after_run(repo, since, run_id)


def housekeepers(pids: "list[int]") -> "list[int]":
    """Those of the processes that are git's own housekeeping in the background."""
    if sys.platform == "win32":
        return []
    from sandrun.git import git_processes

    return [pid for pid in pids if git_processes.keeps_house(pid)]


def stop_fsmonitor(pid: int) -> None:
    """Have a file system monitor of git's end by git's own command."""
    from sandrun.git import fsmonitor

    fsmonitor.stop(pid)


_DETACH = ("gc.autoDetach", "maintenance.autoDetach")
"""git-config(1): since 2.0 and 2.47."""
_MANY = 1 << 16


def keep_housekeeping(env: "dict[str, str]", project: str) -> None:
    """Have every git of a run in `project` end its housekeeping before itself instead of leaving it
    in the background: by GIT_CONFIG_COUNT (git-config(1), 2.31), appended to what is there.

    What git takes from there overrides its files, so nothing is set where the user has set one of
    the two: in the environment, or in a file that git reads, included ones too, whatever their
    condition. (A system file elsewhere than in /etc does not count.)
    """
    if sys.platform == "win32":  # git leaves nothing in the background there
        return
    count = env.get("GIT_CONFIG_COUNT") or "0"
    if not (count.isascii() and count.isdecimal()) or len(count) > 4:
        return  # git itself refuses it, or nobody can mean it
    said = [env.get("GIT_CONFIG_PARAMETERS", "")]
    if count != "0":
        said += [text for name, text in env.items() if name.startswith("GIT_CONFIG_KEY_")]
    if any("autodetach" in text.lower() for text in said) or _is_detach_set(env, project):
        return
    for number, key in enumerate(_DETACH, int(count)):
        env[f"GIT_CONFIG_KEY_{number}"] = key
        env[f"GIT_CONFIG_VALUE_{number}"] = "false"
    env["GIT_CONFIG_COUNT"] = str(int(count) + len(_DETACH))


def _is_detach_set(env: "Mapping[str, str]", project: str) -> bool:
    """Whether a configuration file speaks of one of `_DETACH`: nearly always four small reads, of
    five files."""
    home = env.get("HOME", "")
    config = env.get("XDG_CONFIG_HOME") or f"{home}/.config"
    files = [f"{project}/.git/config", f"{project}/.git/config.worktree"]
    files.append(env.get("GIT_CONFIG_GLOBAL") or f"{home}/.gitconfig")
    if not env.get("GIT_CONFIG_GLOBAL"):
        files.append(f"{config}/git/config")
    if not env.get("GIT_CONFIG_NOSYSTEM"):
        files.append(env.get("GIT_CONFIG_SYSTEM") or "/etc/gitconfig")
    places = (f"{project}/.git", f"{project}/HEAD")  # a worktree or submodule; a bare repository
    if env.get("GIT_DIR") or any(map(os.path.isfile, places)):
        repo = around(project, env)
        files[:2] = [f"{repo.common_dir}/config", f"{repo.git_dir}/config.worktree"] if repo else []
    for file in files:
        text = _head(file).lower()
        if b"autodetach" in text:
            return True
        if b"include" in text or len(text) >= _MANY:
            from sandrun.git import included

            if included.mentions(file, b"autodetach", home):
                return True
    return False


def _head(path: str) -> bytes:
    """What a file starts with, for the price of three system calls; b'': nothing to be read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        try:
            return os.read(fd, _MANY)
        finally:
            os.close(fd)
    except OSError:
        return b""


HOOK_MARK = "SANDRUN_HOOK"
"""Set by the line that `sandrun init` puts into a hook: the hook, as git has called it."""


def is_hook(command: "list[str]") -> bool:
    """Whether a command is that very hook, which needs what git tells it, such as the index of a
    `commit -a`. What the hook starts has the mark too, but is another command.

    The hook itself, or `sh -e HOOK`, as husky starts it.
    """
    mark = os.environ.get(HOOK_MARK)
    return bool(mark) and mark in (command[0], *command[2:3])


def clean(env: "dict[str, str]", hook: bool) -> None:
    """Take out of `env` what makes every git below act on one repository.

    A hook keeps its index, and all of it where its git would not be found without: the git dir
    of `git --git-dir=~/.dotfiles commit` is nowhere above the hook.
    """
    if hook:
        from sandrun.git.repository import find

        meant, seen = find(".", env), find(".", {})
        if meant and (not seen or seen.git_dir != meant.git_dir):
            return
    for name in LOCAL_VARIABLES:
        if not (hook and name in _HOOKS_OWN):
            env.pop(name, None)


def leaked(hook: bool = False) -> "list[str]":
    """The variables around us that make every git below act on one repository.

    A hook gets a relative GIT_INDEX_FILE from every commit: harmless, it counts from the top of
    whatever repository a git is in. In a linked worktree it gets a GIT_DIR too, and so do the
    tests that it starts; a `hook` itself needs whatever index it has got.
    """
    found = [name for name in _DANGEROUS if os.environ.get(name)]
    if not hook and os.path.isabs(os.environ.get("GIT_INDEX_FILE", "")):
        found.append("GIT_INDEX_FILE")
    return found


LEAK_HINT = (
    "clean_git_env = true in sandrun.toml, then sandrun trust; "
    "or: unset $(git rev-parse --local-env-vars)"
)


def leak_check() -> "tuple[bool, str, str]":
    """For `sandrun doctor`: whether all is well, the evidence, what mends it."""
    found = leaked()
    if not found:
        return True, "no GIT_DIR or the like in the environment", ""
    text = ", ".join(f"{name}={os.environ[name]}" for name in found)
    return False, f"{text}: every git in a run acts on that repository", LEAK_HINT

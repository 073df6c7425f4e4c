"""The git guard: git commands of one repository wait for each other instead of failing.

It has two parts. Before a run, `wait_for_git` lets an active git finish, so that the run does not
see half a checkout. Around a git command, `sandrun git ARGS` (`wrapper`) acquires a turn among the
guarded commands (`record_locks`), waits for git's own locks (`lock_files`), and then becomes the
real git.

Promises
- git runs exactly once, at the latest when `git_wait` has passed. Its exit code, output, terminal
  and signals are its own, because no process of ours stays around it.
- A live lock is never touched (`stale`). An enclosing git (a hook of `git commit`) never blocks.
- If nothing has to be waited for, nothing is printed.
- Commands that only read never wait, except `describe --dirty`, which always locks the index. They
  refresh the index only if no guarded writer can meet the lock for that. So a reader can still see
  a half-finished change, as without sandrun: `git stash list` fails while the last stash is
  dropped.

Leaves to others which real git a shim calls, and whether hooks reach the shim. git puts its own
directory first in the PATH of its children, so most hooks call the real git: they are inside a
turn.
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
"""The variables that bind a process to one repository, often leaked by hooks: those of `git
rev-parse --local-env-vars`, and the quarantine of a pre-receive hook. GIT_CONFIG_COUNT is not among
them, because the user sets it (proxy, credentials, safe.directory of a CI); `git -c` sets
GIT_CONFIG_PARAMETERS."""

_PLACES = ("GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE")
_GUARDED = ("index", "HEAD")
_HOOKS_OWN = ("GIT_INDEX_FILE", "GIT_PREFIX")
_DANGEROUS = ("GIT_DIR", "GIT_WORK_TREE", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY")


def repository_of(
    project: str, env: "Mapping[str, str]" = os.environ, here: str = os.curdir
) -> "Repository | None":
    """The repository that git commands of a run in `project` use, with the variables of `env`; a
    relative GIT_DIR counts from `here`."""
    from sandrun.git.repository import find

    return find(here if env.get("GIT_DIR") else project, env)


def is_quiet(project: str) -> bool:
    """Whether it is certain that no git is active in `project`. Nearly every run finds that with
    four system calls; otherwise `wait_for_git` must examine it. There is no guard on Windows."""
    if sys.platform == "win32":
        return True
    import fcntl  # loaded by the queue

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
        # Shared, and only for a moment, for which a git that starts now must wait.
        fcntl.lockf(fd, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, 0)
        return True
    except OSError:
        return False
    finally:
        os.close(fd)


def wait_for_git(project: str, patience: float, mask: "set[int]") -> None:
    """Wait up to `patience` seconds for the git active in `project`; warn if it continues.

    `mask` is the caller's signal mask. Raises errors.Interrupted on a signal that ends the wait.
    """
    if sys.platform == "win32":
        return
    repo = repository_of(project)
    if repo is None:
        return
    from sandrun.git import git_processes

    if git_processes.enclosing_git(repo):
        return
    from sandrun.git import waiter

    with waiter.Interruptible(mask):
        waiter.Wait(repo, patience, "going on without waiting").quiet()


def heal_after(
    project: str,
    since: float,
    run_id: str,
    env: "Mapping[str, str]" = os.environ,
    here: str = os.curdir,
) -> None:
    """Move aside the locks of a run whose processes are all dead (`stale.after_run`)."""
    if sys.platform == "win32":
        return
    repo = repository_of(project, env, here)
    if repo:
        from sandrun.git import stale

        stale.after_run(repo, since, run_id)


def housekeepers(pids: "list[int]") -> "list[int]":
    """The processes among `pids` that are git's background housekeeping."""
    if sys.platform == "win32":
        return []
    from sandrun.git import git_processes

    return [pid for pid in pids if git_processes.is_housekeeping(pid)]


def stop_fsmonitor(pid: int) -> None:
    """Stop a file system monitor of git by git's own command."""
    if sys.platform == "win32":
        return
    from sandrun.git import fsmonitor

    fsmonitor.stop(pid)


_DETACH = ("gc.autoDetach", "maintenance.autoDetach")
"""git-config(1): since 2.0 and 2.47."""
_MANY = 1 << 16


def keep_housekeeping(env: "dict[str, str]", project: str) -> None:
    """Make every git of a run in `project` finish its housekeeping before it exits, instead of in
    the background, by entries appended to GIT_CONFIG_COUNT (git-config(1), 2.31).

    These override git's files. So nothing is set if the user has set one of the two keys, in the
    environment or in a file that git reads; an included file counts whatever its condition. (A
    system file outside /etc does not count.)
    """
    if sys.platform == "win32":  # git leaves nothing in the background on Windows
        return
    count = env.get("GIT_CONFIG_COUNT") or "0"
    if not (count.isascii() and count.isdecimal()) or len(count) > 4:
        return  # git refuses it, or it is not plausible
    set_keys = [env.get("GIT_CONFIG_PARAMETERS", "")]
    if count != "0":
        set_keys += [text for name, text in env.items() if name.startswith("GIT_CONFIG_KEY_")]
    if any("autodetach" in text.lower() for text in set_keys) or _is_detach_set(env, project):
        return
    for number, key in enumerate(_DETACH, int(count)):
        env[f"GIT_CONFIG_KEY_{number}"] = key
        env[f"GIT_CONFIG_VALUE_{number}"] = "false"
    env["GIT_CONFIG_COUNT"] = str(int(count) + len(_DETACH))


def _is_detach_set(env: "Mapping[str, str]", project: str) -> bool:
    """Whether a configuration file mentions one of `_DETACH`. Nearly always four small reads of
    five possible files."""
    home = env.get("HOME", "")
    config = env.get("XDG_CONFIG_HOME") or f"{home}/.config"
    files = [f"{project}/.git/config", f"{project}/.git/config.worktree"]
    files.append(env.get("GIT_CONFIG_GLOBAL") or f"{home}/.gitconfig")
    if not env.get("GIT_CONFIG_GLOBAL"):
        files.append(f"{config}/git/config")
    if not env.get("GIT_CONFIG_NOSYSTEM"):
        files.append(env.get("GIT_CONFIG_SYSTEM") or "/etc/gitconfig")
    places = (
        f"{project}/.git",
        f"{project}/HEAD",
    )  # a linked worktree or submodule; a bare repository
    if env.get("GIT_DIR") or any(map(os.path.isfile, places)):
        repo = repository_of(project, env)
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
    """The beginning of a file, by three system calls; b'' if it cannot be read."""
    if sys.platform == "win32":
        return b""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        try:
            return os.read(fd, _MANY)
        finally:
            os.close(fd)
    except OSError:
        return b""


HOOK_MARK = "SANDRUN_HOOK"
"""Set by the line that `sandrun init` adds to a hook: the path of the hook, as git called it."""


def is_hook(command: "list[str]") -> bool:
    """Whether a command is the hook that git called, as `HOOK` or, by husky, as `sh -e HOOK`.

    The hook needs git's variables, such as the index of a `commit -a`. Its children inherit the
    mark but are other commands.
    """
    mark = os.environ.get(HOOK_MARK)
    return bool(mark) and mark in (command[0], *command[2:3])


def clean(env: "dict[str, str]", hook: bool) -> None:
    """Remove from `env` the variables that bind every git of the run to one repository.

    A hook keeps its index. It keeps all of them if its repository would not be found without: the
    git directory of `git --git-dir=~/.dotfiles commit` is not above the hook.
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
    """The variables of our environment that bind every git of the run to one repository.

    Every commit gives its hooks a relative GIT_INDEX_FILE. That is harmless: it counts from the top
    of the repository that a git is in. In a linked worktree hooks and the tests that they start
    also get a GIT_DIR. The `hook` itself needs its index.
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
    """For `sandrun doctor`: whether the check passes, the evidence, and the remedy."""
    found = leaked()
    if not found:
        return True, "no GIT_DIR or the like in the environment", ""
    text = ", ".join(f"{name}={os.environ[name]}" for name in found)
    return False, f"{text}: every git in a run acts on that repository", LEAK_HINT

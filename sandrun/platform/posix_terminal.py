"""The foreground process group of our terminal, and the terminal's modes. Never raises."""

import os
import sys

assert sys.platform != "win32"

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def _open() -> int:
    try:
        return os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return -1


def foreground(command: int) -> int:
    """The foreground process group if it is ours or the command's own, else 0."""
    fd = _open()
    if fd < 0:
        return 0
    try:
        front = os.tcgetpgrp(fd)
        return front if front in (os.getpgrp(), os.getpgid(command)) else 0
    except OSError:
        return 0
    finally:
        os.close(fd)


def is_ours() -> "bool | None":
    """Whether our process group is in the foreground; None: there is no terminal (any more)."""
    fd = _open()
    if fd < 0:
        return None
    try:
        return os.tcgetpgrp(fd) == os.getpgrp()
    except OSError:
        return None
    finally:
        os.close(fd)


def modes() -> "list[Any] | None":
    """The modes (termios(3)) of the terminal if our group is in the foreground. None: it is not, or
    our caller has made the terminal raw, and will restore it."""
    fd = _open()
    if fd < 0:
        return None
    import termios

    try:
        before = termios.tcgetattr(fd)
        # Groups outside our pid namespace all have the number 0 and cannot be distinguished.
        has_it = os.tcgetpgrp(fd) == os.getpgrp() != 0
        return before if has_it and before[3] & termios.ICANON else None
    except (OSError, termios.error):
        return None
    finally:
        os.close(fd)


def restore(before: "list[Any]", helper: str) -> None:
    """Restore these modes if no other process uses the terminal. For example, a pager in our
    pipeline, which is in our group, may have made it raw for itself. Processes with the name
    `helper`, which are ours, do not count.

    A killed command cannot restore them, and a shell restores them only for a job that a signal
    ended (bash, jobs.c), while we exit with a code.
    """
    fd = _open()
    if fd < 0:
        return
    import termios

    try:
        if (
            termios.tcgetattr(fd) != before
            and _is_free(os.tcgetpgrp(fd))
            and not _is_shared(helper)
        ):
            termios.tcsetattr(fd, termios.TCSANOW, before)
    except (OSError, termios.error):
        pass
    finally:
        os.close(fd)


def _is_free(front: int) -> bool:
    """Whether the foreground group is ours, or is gone, like that of a dead interactive shell."""
    try:
        if front != os.getpgrp():
            os.killpg(front, 0)
            return False
    except ProcessLookupError:
        pass
    return True


def _is_shared(helper: str) -> bool:
    """Whether our group contains a live sibling of this process or of an ancestor of it. Processes
    with the name `helper` do not count: they belong to an outer run."""
    from sandrun.platform import processes

    child = os.getpid()
    for parent in processes.ancestors(child):
        siblings = [
            pid for pid in processes.children(parent) if pid != child and is_in_our_group(pid)
        ]
        if not all(processes.has_exited(pid) or _is_named(pid, helper) for pid in siblings):
            return True
        if not is_in_our_group(parent):
            break
        child = parent
    return False


def _is_named(pid: int, name: str) -> bool:
    from sandrun.platform import processes

    try:
        return processes.Stat(pid).name == name
    except OSError:
        return True  # it is gone


def is_in_our_group(pid: int) -> bool:
    """Whether the process is in our group."""
    try:
        return os.getpgid(pid) == os.getpgrp()
    except OSError:
        return False


def give_to(group: int) -> None:
    """Put `group` in the foreground again if a shell has put our group there since.

    An interactive shell below us has a group of its own, unknown to the shell that started us.
    SIGTTOU is blocked, so this cannot stop us.
    """
    fd = _open()
    if fd < 0:
        return
    try:
        if os.tcgetpgrp(fd) == os.getpgrp() != group:
            os.tcsetpgrp(fd, group)
    except OSError:
        pass
    finally:
        os.close(fd)

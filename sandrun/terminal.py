"""Which process group has the terminal, and in which modes the terminal is. Never raises."""

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def _open() -> int:
    try:
        return os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return -1


def foreground(command: int) -> int:
    """The foreground group of our terminal if it is ours or the command's own, else 0."""
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
    """Whether our process group has our terminal; None: there is no terminal (any more)."""
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
    """The modes (termios(3)) of the terminal that our group has, else None."""
    fd = _open()
    if fd < 0:
        return None
    import termios

    try:
        return termios.tcgetattr(fd) if os.tcgetpgrp(fd) == os.getpgrp() else None
    except (OSError, termios.error):
        return None
    finally:
        os.close(fd)


def restore(before: "list[Any]") -> None:
    """Put the terminal back in those modes, if it is still ours.

    A program that was killed cannot do it, and a shell does it only for a job that a signal ended
    (bash, jobs.c), where we exit with a code.
    """
    fd = _open()
    if fd < 0:
        return
    import termios

    try:
        if os.tcgetpgrp(fd) == os.getpgrp():
            termios.tcsetattr(fd, termios.TCSANOW, before)
    except (OSError, termios.error):
        pass
    finally:
        os.close(fd)


def hand_to(group: int) -> None:
    """Give the terminal to the group that had it, if a shell has given it to us since.

    An interactive shell below us has a group of its own, which our shell knows nothing of.
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

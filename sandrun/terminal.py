"""Which process group has the terminal, for a command that was stopped. Never raises."""

import os


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

"""Taking blocked signals one by one where sigtimedwait(2) is missing: macOS.

sigwait(2) takes them, and the process's timer (setitimer(2)) ends a wait that has a bound; the
timer runs only within such a wait, so no command ever inherits it. Invariants
- SIGALRM is the timer's and is not passed on: nobody can tell a late one of ours from somebody
  else's. Nor are SIGPIPE and SIGXFSZ, which Python ignores (see below).
- A signal stays blocked and pending until it is taken, as with sigtimedwait. XNU drops at once
  what is ignored by default, blocked or not (psignal_internal, bsd/kern/kern_sig.c); so those get
  a handler, which never runs, and exec makes them the default again.
- Who sent a signal cannot be known. While our process group has the terminal, what a terminal
  sends (Ctrl-C, Ctrl-\\, Ctrl-Z, Ctrl-T, a new window size) counts as the terminal's own, thus the
  command has it from the kernel and gets it once; SIGTTIN and SIGTTOU, which only a terminal
  sends, always do. All else, and all of it in the background, is passed on. So what is lost is a
  `kill -INT` of sandrun alone from elsewhere while it is in the foreground.
"""

import sys

from sandrun.bare import signal as _signal
from sandrun.platform import posix_terminal

assert sys.platform != "win32"

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_NAMES = ("SIGINT", "SIGQUIT", "SIGTSTP", "SIGWINCH", "SIGINFO")
_FROM_TERMINAL = {getattr(_signal, name) for name in _NAMES if hasattr(_signal, name)}
_BACKGROUND = {_signal.SIGTTIN, _signal.SIGTTOU}
_DROPPED = ("SIGCHLD", "SIGWINCH", "SIGURG", "SIGIO", "SIGINFO")
_SI_USER, _SI_KERNEL = 0, 1  # the signs are what counts (sigaction(2) of Linux)
_SHORTEST = 1e-6
"""Seconds; a timer of zero would never end."""


class Taken:
    """A signal as sigwaitinfo(2) tells of it: `si_code` > 0 for the terminal's own."""

    __slots__ = ("si_code", "si_pid", "si_signo")

    def __init__(self, signum: int) -> None:
        self.si_signo = signum
        self.si_pid = 0
        ours = signum in _BACKGROUND or (signum in _FROM_TERMINAL and _has_terminal())
        self.si_code = _SI_KERNEL if ours else _SI_USER


_had_terminal = False


def _has_terminal() -> bool:
    """A Ctrl-C may also end the leader of our session, and the terminal is gone before we look:
    then what we saw before counts."""
    global _had_terminal
    now = posix_terminal.is_ours()
    _had_terminal = _had_terminal if now is None else now
    return _had_terminal


_has_terminal()


def _never(signum: int, frame: object) -> None:
    pass


for _name in _DROPPED:
    _signum = getattr(_signal, _name, 0)
    if _signum and _signal.getsignal(_signum) == _signal.SIG_DFL:
        _signal.signal(_signum, _never)


def sigwaitinfo(signals: "Iterable[int]") -> Taken:
    """The next of these blocked signals."""
    while (signum := _signal.sigwait(signals)) == _signal.SIGALRM:
        pass
    return Taken(signum)


def sigtimedwait(signals: "Iterable[int]", seconds: float) -> "Taken | None":
    """The same within so many seconds, else None."""
    wanted = set(signals)
    if not wanted & _signal.sigpending():
        if seconds <= 0:
            return None
        wanted.add(_signal.SIGALRM)
        _signal.setitimer(_signal.ITIMER_REAL, max(seconds, _SHORTEST))
    signum = _signal.sigwait(wanted)
    _signal.setitimer(_signal.ITIMER_REAL, 0)
    return None if signum == _signal.SIGALRM else Taken(signum)

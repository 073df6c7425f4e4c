"""sigwaitinfo(2) and sigtimedwait(2) for macOS, which lacks them.

sigwait(2) accepts blocked signals, and the process's timer (setitimer(2)) ends a wait with a
timeout. The timer runs only during such a wait, so no command inherits it. Invariants
- SIGALRM belongs to the timer and is not passed on: a late one from the timer cannot be
  distinguished from one of another process. SIGPIPE and SIGXFSZ, which Python ignores, are not
  passed on either.
- A signal stays blocked and pending until it is accepted, as with sigtimedwait. XNU discards a
  signal that is ignored by default, even if it is blocked (psignal_internal, bsd/kern/kern_sig.c).
  So those signals get a handler, which never runs; exec restores the default.
- The sender of a signal is not known. While our process group has the terminal, signals that a
  terminal sends (Ctrl-C, Ctrl-\\, Ctrl-Z, Ctrl-T, a new window size) count as the terminal's. They
  are not passed on, because the kernel has sent them to the command, too. SIGTTIN and SIGTTOU,
  which only a terminal sends, always count as the terminal's. All other signals, and all that
  arrive in the background, are passed on. So the only loss is a `kill -INT` of sandrun alone while
  it is in the foreground.
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
_SI_USER, _SI_KERNEL = 0, 1  # only their signs matter (sigaction(2) of Linux)
_SHORTEST = 1e-6
"""Seconds; a timer of zero would never fire."""


class Accepted:
    """An accepted signal, as sigwaitinfo(2) reports it; `si_code` > 0: the terminal sent it."""

    __slots__ = ("si_code", "si_pid", "si_signo")

    def __init__(self, signum: int) -> None:
        self.si_signo = signum
        self.si_pid = 0
        ours = signum in _BACKGROUND or (signum in _FROM_TERMINAL and _has_terminal())
        self.si_code = _SI_KERNEL if ours else _SI_USER


_had_terminal = False


def _has_terminal() -> bool:
    """Whether our process group has the terminal. If Ctrl-C also ended the session leader, the
    terminal is already gone, and the previous result counts."""
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


def sigwaitinfo(signals: "Iterable[int]") -> Accepted:
    """Wait for one of these blocked signals and accept it."""
    while (signum := _signal.sigwait(signals)) == _signal.SIGALRM:
        pass
    return Accepted(signum)


def sigtimedwait(signals: "Iterable[int]", seconds: float) -> "Accepted | None":
    """The same, for at most `seconds`; None: no signal arrived."""
    wanted = set(signals)
    if not wanted & _signal.sigpending():
        if seconds <= 0:
            return None
        wanted.add(_signal.SIGALRM)
        _signal.setitimer(_signal.ITIMER_REAL, max(seconds, _SHORTEST))
    signum = _signal.sigwait(wanted)
    _signal.setitimer(_signal.ITIMER_REAL, 0)
    return None if signum == _signal.SIGALRM else Accepted(signum)

"""Starting the command as if its caller had started it.

Promises that the command gets the caller's signal mask and dispositions, descriptors, environment
and process group. It shares the supervisor's process group, so the kernel sends it the terminal's
signals directly and once, and job control works as without sandrun.

There are two ways: posix_spawn(3) (a vfork: 0.6 ms) if the supervisor can enter the container and
leave it again, and fork (1.1 ms) if the child itself must enter it before exec.

Python ignores SIGPIPE and SIGXFSZ before our first line, so whether the caller ignored them is not
known. A shell passes on exactly what it ignores itself, so if the parent is a shell, its status in
/proc decides. For any other parent the command gets the default action, because programs that
ignore SIGPIPE for themselves (Python, node) pass that on unintentionally.
"""

import errno
import os
import sys

from sandrun.bare import signal as _signal
from sandrun.model import SandrunError, error_text

assert sys.platform != "win32"

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import TypeVar

    T = TypeVar("T")

ALL_SIGNALS = _signal.valid_signals()


class CallerState:
    """What this process inherited from its caller: signal mask, ignored signals, umask, parent.
    `capture` records it before anything changes it."""

    __slots__ = ("errors", "ignored", "isolate", "mask", "parent", "umask")

    def __init__(self, mask: "set[int]", ignored: "frozenset[int]" = frozenset()) -> None:
        self.mask = mask
        self.ignored = ignored
        """Signals that the command must ignore like its caller, but we or Python do not."""
        self.umask = 0o022
        self.parent = 0
        """The process whose death ends the run; 0: none."""
        self.errors = -1
        """Read end of the pipe to which a forked child writes why it failed; -1: none."""
        self.isolate: Callable[[], None] | None = None
        """Called by the child inside its container, before exec; raises OSError."""


def capture() -> CallerState:
    """Block all signals, so that none is lost from here on, and record the caller's state."""
    mask = _signal.pthread_sigmask(_signal.SIG_BLOCK, ALL_SIGNALS)
    parent = os.getppid()
    name, bits = _parent_status(parent)
    ignored = {s for s in _PYTHONS if bits >> (s - 1) & 1 and _is_shell(parent, name)}
    if _signal.getsignal(_signal.SIGCHLD) == _signal.SIG_IGN:
        # Otherwise the kernel would discard the exit statuses of our children.
        _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
        ignored.add(_signal.SIGCHLD)
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            # So no file of ours becomes a standard descriptor. It is close-on-exec, so for the
            # command the descriptor is closed, as the caller left it.
            os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    caller = CallerState({int(number) for number in mask}, frozenset(ignored))
    caller.umask = os.umask(0o077)
    _own_umask(caller)
    if parent > 1 and not _is_detached(name):
        caller.parent = parent
    return caller


def _is_detached(parent: bytes) -> bool:
    """Whether the run is to outlive its caller, a process named `parent` (b'': not known).

    What we inherited decides, so the result does not depend on how soon the caller dies. If it died
    before our first line, `parent` is the process that adopts orphans, which lives on.
    """

    def ignores(signum: int) -> bool:
        return bool(_signal.getsignal(signum) == _signal.SIG_IGN)

    # By nohup, or by a shell without job control that started us or an ancestor with `&` (POSIX,
    # Shell Command Language, "Signals and Error Handling").
    if ignores(_signal.SIGHUP) or (ignores(_signal.SIGINT) and ignores(_signal.SIGQUIT)):
        return True
    leads_session = os.getsid(0) == os.getpid()
    # With job control, each job of a shell is a process group of its own.
    leads_group = not leads_session and os.getpgrp() == os.getpid()
    is_job = leads_group and _is_shell(os.getppid(), parent)
    if not is_job and (not leads_session or parent in _LOGINS):
        return False
    from sandrun.platform import posix_terminal

    # A session without a terminal is detached (setsid), and so is a job in the background.
    return posix_terminal.is_ours() is None or (is_job and not posix_terminal.is_ours())


ENDING = {_signal.SIGHUP, _signal.SIGINT, _signal.SIGQUIT, _signal.SIGTERM}
"""The signals that ask a program to terminate, and by default terminate it."""


def interruptibly(caller: CallerState, call: "Callable[[], T]") -> "T":
    """The result of `call`, during which the signals that terminate an ordinary program terminate
    this process, too: `call` only reads files, possibly slow ones, so nothing must be undone.

    Not as PID 1, to which the kernel applies no default action (pid_namespaces(7)).
    """
    if os.getpid() == 1:
        return call()
    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
    _signal.pthread_sigmask(_signal.SIG_UNBLOCK, ENDING - caller.mask)
    try:
        return call()
    finally:
        _signal.pthread_sigmask(_signal.SIG_BLOCK, ENDING)


def pending_end_signal(caller: CallerState) -> int:
    """A pending signal that would have ended an ordinary program; 0: there is none."""
    pending = ENDING & _signal.sigpending() - caller.mask
    return next((int(s) for s in pending if _signal.getsignal(s) != _signal.SIG_IGN), 0)


def _own_umask(caller: CallerState) -> None:
    """Use the caller's umask for our own files, but never restrict their owner: this run and later
    ones need those rights even under umask 777."""
    os.umask(caller.umask & 0o077)


_PYTHONS = (_signal.SIGPIPE, _signal.SIGXFSZ)
"""The signals that Python ignores at its start."""
_SHELLS = (b"sh", b"dash", b"bash", b"zsh", b"ksh", b"ksh93", b"mksh", b"ash", b"busybox")
_LOGINS = (b"sshd", b"sshd-session", b"dropbear")
"""Programs that start commands in a new session without a terminal, and exit on a hang-up."""


def _parent_status(parent: int) -> "tuple[bytes, int]":
    """The name of our parent and a bit mask of the signals that it ignores (proc(5): Name, SigIgn);
    b'' and 0 if /proc does not show them."""
    try:
        # Otherwise /proc shows another pid namespace (`processes.PROC` would cost an import).
        if os.readlink("/proc/self") != str(os.getpid()):
            return b"", 0
        fd = os.open(f"/proc/{parent}/status", os.O_RDONLY | os.O_CLOEXEC)
        try:
            status = os.read(fd, 4096)
        finally:
            os.close(fd)
        bits = int(status.partition(b"SigIgn:\t")[2][:16], 16)
        return status[6 : status.index(b"\n")], bits
    except (OSError, ValueError):
        return b"", 0


def _is_shell(pid: int, name: bytes) -> bool:
    """Whether the process `pid` named `name` is a shell. A shell that runs an executable script has
    the script's name, but /proc/PID/exe is the interpreter in its first line (execve(2))."""
    try:
        # For a file that was removed or replaced since, the kernel appends " (deleted)".
        program = os.readlink(b"/proc/%d/exe" % pid) if name and name not in _SHELLS else name
    except OSError:
        return False  # another user's process, or gone
    return os.path.basename(program).partition(b" ")[0] in _SHELLS


def _to_default(caller: CallerState) -> "list[int]":
    """The signals whose disposition Python changed from the default."""
    changed = [signum for signum in _PYTHONS if signum not in caller.ignored]
    if _signal.getsignal(_signal.SIGINT) not in (_signal.SIG_IGN, _signal.SIG_DFL):
        changed.append(_signal.SIGINT)
    return changed


def environment(extra: "Mapping[str, str]") -> "dict[str, str]":
    """The caller's environment plus `extra`."""
    env = dict(os.environ)
    # PEP 538: in the C locale Python sets LC_CTYPE before our first line.
    if env.get("LC_CTYPE") == "C.UTF-8" and not _was_in_environment(b"LC_CTYPE="):
        del env["LC_CTYPE"]
    env.update(extra)
    return env


def _was_in_environment(start: bytes) -> bool:
    try:
        with open("/proc/self/environ", "rb") as file:
            return any(entry.startswith(start) for entry in file.read().split(b"\0"))
    except OSError:
        return True


def _nothing() -> None:
    pass


argv0_names: "dict[str, str]" = {}
"""Maps a path that is executed to the argv[0] that it gets, if they differ: a shim executes make by
its path, and make passes on its argv[0] as $(MAKE)."""


def _named(argv: "list[str]") -> "list[str]":
    return [argv0_names.get(argv[0], argv[0]), *argv[1:]]


def direct(
    argv: "list[str]",
    env: "Mapping[str, str]",
    caller: CallerState,
    enter: "Callable[[], None]" = _nothing,
    leave: "Callable[[], None]" = _nothing,
) -> int:
    """Start the command by posix_spawn in the container, which we enter and leave; its pid.

    Raises OSError if the command cannot be executed, SandrunError if we cannot enter or leave.
    """
    try:
        _move(enter)
        os.umask(caller.umask)
        # posix_spawn can reset a disposition, but cannot ignore a signal (SIGPIPE and SIGXFSZ are
        # already ignored). Python's refuses an empty name.
        if argv[0] and not caller.isolate and _signal.SIGCHLD not in caller.ignored:
            mask, default = caller.mask, _to_default(caller)
            try:
                words = _named(argv)
                return os.posix_spawnp(argv[0], words, env, setsigmask=mask, setsigdef=default)
            except OSError as error:
                if error.errno != errno.ENOEXEC:
                    raise
        return fork(argv, env, caller, _nothing)
    finally:
        _own_umask(caller)
        _move(leave)


def _move(step: "Callable[[], None]") -> None:
    try:
        step()
    except OSError as error:
        text = f"cannot move between containers: {error_text(error)}"
        raise SandrunError(text, "see sandrun doctor") from None


def fork(
    argv: "list[str]",
    env: "Mapping[str, str]",
    caller: CallerState,
    enter: "Callable[[], None]",
    clone: "Callable[[], int]" = os.fork,
) -> int:
    """Start the command by fork: the child calls `enter`, then exec; its pid.

    A child that cannot enter or exec does not run the command: it writes `<E|N|X><errno> <what>`
    (E: cannot enter, N: cannot be isolated, X: cannot exec) to `caller.errors` and exits.
    Raises OSError if `clone` does.
    """
    supervisor = os.getpid()
    read_end, write_end = os.pipe()
    try:
        pid = clone()
    except OSError:
        os.close(read_end)
        os.close(write_end)
        raise
    if pid == 0:
        _child(argv, env, caller, enter, write_end, supervisor)
    os.close(write_end)
    caller.errors = read_end
    return pid


def _child(
    argv: "list[str]",
    env: "Mapping[str, str]",
    caller: CallerState,
    enter: "Callable[[], None]",
    write_end: int,
    supervisor: int,
) -> None:
    stage = "E"
    try:
        enter()
        if os.getppid() != supervisor:
            os._exit(127)  # the supervisor died before we entered, so its cleanup missed us
        if caller.isolate:
            stage = "N"
            caller.isolate()
        stage = "X"
        restore(caller)
        _execute(argv, env)
    except OSError as error:
        os.write(write_end, encode_failure(stage, error))
    except BaseException:
        os.write(write_end, encode_failure(stage, OSError()))
    finally:
        os._exit(127)


def restore(caller: CallerState) -> None:
    """Restore the caller's signals and umask in this process, which is about to exec the command.

    It resets handlers before it unblocks signals: a pending signal must act as on the command, and
    not run a handler of ours.
    """
    os.umask(caller.umask)
    for signum in _to_default(caller):
        _signal.signal(signum, _signal.SIG_DFL)
    if _signal.SIGCHLD in caller.ignored:
        _signal.signal(_signal.SIGCHLD, _signal.SIG_IGN)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, caller.mask)


def _execute(argv: "list[str]", env: "Mapping[str, str]") -> None:
    """execvpe(3), which passes a file of unknown format to the shell (execvp(3))."""
    name = argv[0]
    path = env.get("PATH", os.defpath)
    candidates = [name] if "/" in name else [os.path.join(d, name) for d in path.split(":")]
    failure = OSError(errno.ENOENT, "")
    for candidate in candidates if name else []:
        try:
            os.execve(candidate, _named(argv), env)
        except OSError as error:
            if error.errno == errno.ENOEXEC:
                os.execve("/bin/sh", ["/bin/sh", candidate, *argv[1:]], env)
            if error.errno == errno.EACCES:
                failure = error
            elif error.errno not in (errno.ENOENT, errno.ENOTDIR):
                raise
    raise failure


def encode_failure(stage: str, error: OSError) -> bytes:
    """The message that a child writes when it fails before exec."""
    return f"{stage}{error.errno or 0} {error.filename or ''}".encode("utf-8", "surrogateescape")


def decode_failure(message: bytes) -> "tuple[str, int, str]":
    """Stage, errno and file name of such a message; ('', 0, '') for an empty one."""
    number, _, what = message[1:].decode("utf-8", "surrogateescape").partition(" ")
    return message[:1].decode(), int(number or 0), what


def failure(caller: CallerState) -> "tuple[str, int, str]":
    """Why the forked child never ran the command (see `decode_failure`); ('', 0, '') if it did."""
    message = b""
    if caller.errors >= 0:
        os.set_blocking(caller.errors, False)
        try:
            message = os.read(caller.errors, 4096)
        except BlockingIOError:
            pass
    return decode_failure(message)


def rename_process(name: bytes) -> bool:
    """Change the name and command line that ps and pkill show (proc(5)). Also clear the environment
    in our memory, because CI agents kill processes by marks in it; `os.environ` stays. False: not
    possible (not Linux, or the kernel hides these areas)."""
    try:
        with open("/proc/self/comm", "wb", buffering=0) as comm:
            comm.write(name)
        with open("/proc/self/stat", "rb", buffering=0) as stat:
            fields = stat.read().rpartition(b")")[2].split()
        start, end, env_start, env_end = map(int, fields[45:49])  # arg_start ... env_end
        with open("/proc/self/mem", "r+b", buffering=0) as memory:
            memory.seek(start)
            memory.write(name[: end - start - 1].ljust(end - start, b"\0"))
            memory.seek(env_start)
            memory.write(bytes(env_end - env_start))
    except (OSError, ValueError, IndexError):
        return False
    return True


_MOST = 1 << 16
"""Descriptors below this are closed, since Linux 5.9 by one system call."""


def become_helper(name: bytes, *kept: int) -> bool:
    """Become a helper process with that name, in `/`. Keeps only the descriptors `kept` (in rising
    order), which become 0, 1, ... False: it could not be renamed (`rename_process`)."""
    for number, fd in enumerate(kept):
        os.dup2(fd, number)
    os.closerange(len(kept), _MOST)
    os.chdir("/")
    return rename_process(name)


def die_of(signum: int) -> None:
    """Terminate by a signal, as the command did. Returns if that is not possible (PID 1)."""
    _signal.signal(signum, _signal.SIG_DFL)
    os.kill(os.getpid(), signum)
    _signal.pthread_sigmask(_signal.SIG_UNBLOCK, (signum,))

"""System calls of Linux that Python's standard library lacks.

The calls of a run use _ctypes, the C module of ctypes (0.4 ms to import). python-prctl (1.2 ms),
else ctypes (2 ms), sets the parent-death signal, and the subreaper where _ctypes could not. All
other calls use ctypes.
"""

import os
import sys

assert sys.platform == "linux"

_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER, <linux/prctl.h>


def _call(name: str, *arguments: "int | bytes") -> int:
    """The result of a function of the C library; -1 if it failed, or cannot be called without
    ctypes by this interpreter. Integers are passed as int, bytes by address."""
    try:
        import _ctypes

        program = _ctypes.dlopen(None, 0)  # type: ignore[arg-type] # as dlopen(3) takes NULL
        return int(_ctypes.call_function(_ctypes.dlsym(program, name), arguments))
    except (ImportError, AttributeError, OSError):
        return -1


def set_child_subreaper() -> bool:
    """Make this process the subreaper of its descendants (PR_SET_CHILD_SUBREAPER)."""
    return _call("prctl", _SUBREAPER, 1, 0, 0, 0) == 0 or _prctl(
        _SUBREAPER, 1, "set_child_subreaper"
    )


_PDEATHSIG = 1  # PR_SET_PDEATHSIG, <linux/prctl.h>


def set_parent_death_signal(signum: int) -> bool:
    """Let the kernel send this process a signal when its parent exits (PR_SET_PDEATHSIG). False:
    not possible."""
    return _prctl(_PDEATHSIG, signum, "set_pdeathsig")


def _prctl(option: int, value: int, name: str) -> bool:
    """prctl(2), by the function `name` of python-prctl where that is installed, else by ctypes."""
    try:
        import prctl

        getattr(prctl, name)(value)
        return True
    except (ImportError, OSError):
        pass
    try:
        import ctypes

        return bool(ctypes.CDLL(None).prctl(option, value, 0, 0, 0) == 0)
    except (ImportError, OSError, AttributeError):
        return False


_CLONE3 = 435  # on every architecture except alpha
_CLONE_INTO_CGROUP = 0x200000000


def clone_into(group: int) -> int:
    """fork(2), except that the child starts in the v2 cgroup whose directory is open as `group`.

    clone3(2), Linux 5.7. Python's fork handlers do not run, so the caller must have only one thread
    and the child may only prepare its exec. Raises OSError (ENOSYS under a seccomp profile).
    """
    words = [0] * 11  # struct clone_args, <linux/sched.h>, version 2: 88 bytes
    flags, exit_signal, cgroup = 0, 4, 10
    words[flags] = _CLONE_INTO_CGROUP
    words[exit_signal] = 17  # SIGCHLD
    words[cgroup] = group
    arguments = b"".join(word.to_bytes(8, sys.byteorder) for word in words)
    pid = _call("syscall", _CLONE3, arguments, len(arguments))
    if pid < 0:  # again, because _ctypes alone does not give the error
        import ctypes

        # PyDLL does not release the interpreter's lock, so the child holds it, too.
        libc = ctypes.PyDLL(None, use_errno=True)
        pid = libc.syscall(_CLONE3, arguments, len(arguments))
        if pid < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
    return int(pid)


_KCMP = {"x86_64": 312, "i686": 349, "ppc64le": 354, "s390x": 343, "aarch64": 272, "riscv64": 272}
_KCMP_VM = 1


def share_address_space(one: int, other: int) -> bool:
    """Whether two processes share one address space (clone(2) with CLONE_VM, vfork(2)).

    By kcmp(2). False where that is not permitted: for another user's process, in many containers.
    """
    number = _KCMP.get(os.uname().machine)
    if number is None:
        return False
    import ctypes

    return bool(ctypes.CDLL(None).syscall(number, one, other, _KCMP_VM, 0, 0) == 0)


def prctl_provider() -> str:
    """The library that `_prctl` uses, for `sandrun doctor`."""
    try:
        import prctl  # noqa: F401 - only its presence matters

        return "python-prctl"
    except ImportError:
        return "ctypes"

"""System calls of Linux that Python's standard library lacks.

The subreaper is set by python-prctl where that is installed (1 ms to import), else by _ctypes
(0.5 ms). All other calls use ctypes (2 ms).
"""

import os
import sys

assert sys.platform == "linux"

_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER, <linux/prctl.h>


def set_child_subreaper() -> bool:
    """Make this process the subreaper of its descendants (PR_SET_CHILD_SUBREAPER)."""
    try:
        import prctl

        prctl.set_child_subreaper(1)
        return True
    except (ImportError, OSError):
        pass
    try:
        import _ctypes  # the C module of ctypes: a quarter of the cost

        program = _ctypes.dlopen(None, 0)  # type: ignore[arg-type] # as dlopen(3) takes NULL
        function = _ctypes.dlsym(program, "prctl")
        return bool(_ctypes.call_function(function, (_SUBREAPER, 1, 0, 0, 0)) == 0)
    except (ImportError, AttributeError):
        return _prctl(_SUBREAPER, 1)
    except OSError:
        return False


_PDEATHSIG = 1  # PR_SET_PDEATHSIG, <linux/prctl.h>


def set_parent_death_signal(signum: int) -> bool:
    """Let the kernel send this process a signal when its parent exits (PR_SET_PDEATHSIG). False:
    not possible."""
    return _prctl(_PDEATHSIG, signum)


def _prctl(option: int, value: int) -> bool:
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
    import ctypes

    words = ctypes.c_uint64 * 11  # struct clone_args, <linux/sched.h>, version 2: 88 bytes
    flags, exit_signal, cgroup = 0, 4, 10
    arguments = words()
    arguments[flags] = _CLONE_INTO_CGROUP
    arguments[exit_signal] = 17  # SIGCHLD
    arguments[cgroup] = group
    # PyDLL does not release the interpreter's lock, so the child holds it, too.
    libc = ctypes.PyDLL(None, use_errno=True)
    pid = libc.syscall(_CLONE3, ctypes.byref(arguments), ctypes.sizeof(arguments))
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
    """The library that sets the subreaper, for `sandrun doctor`."""
    try:
        import prctl  # noqa: F401 - only its presence matters

        return "python-prctl"
    except ImportError:
        return "ctypes"

"""Kills the process that imports it (by PYTHONPATH) at a system call of sandrun's own choice.

A point is `FILE:FUNCTION:CALL`: the call of a C function of posix, _signal, fcntl or resource in
that function of sandrun. SANDRUN_TEST_POINTS=FILE lists the points as they are reached;
SANDRUN_TEST_KILL=POINT sends SIGKILL right before the first call there, POINT+N before the Nth
one after that; SANDRUN_TEST_STOP=POINT a SIGSTOP, SANDRUN_TEST_INT=POINT a SIGINT.
SANDRUN_TEST_SENT=FILE lists what kill(2) is called with. Sandrun itself knows nothing of it.
"""

import os
import sys

_MODULES = ("posix", "_signal", "fcntl", "resource")
_me = os.getpid()
_list = os.environ.get("SANDRUN_TEST_POINTS")
_signal, _kill = 0, ""
for _name, _signum in (("KILL", 9), ("STOP", 19), ("INT", 2)):
    if point := os.environ.get(f"SANDRUN_TEST_{_name}"):
        _signal, _kill = _signum, point
_kill, _, _skip = _kill.partition("+")
_left = int(_skip or "0")
_fd = os.open(_list, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600) if _list else -1


def _hook(frame: object, event: str, function: object) -> None:
    global _left
    if event != "c_call" or getattr(function, "__module__", "") not in _MODULES:
        return
    code = frame.f_code  # type: ignore[attr-defined]
    file = code.co_filename
    if ("/sandrun/" not in file and "/backends/" not in file) or os.getpid() != _me:
        return
    point = f"{os.path.basename(file)}:{code.co_name}:{function.__name__}"  # type: ignore[attr-defined]
    if _fd >= 0:
        os.write(_fd, (point + "\n").encode())
    elif point == _kill:
        if not _left:
            os.kill(_me, _signal)
        _left -= 1


if _fd >= 0 or _kill:
    sys.setprofile(_hook)

_sent = os.environ.get("SANDRUN_TEST_SENT")
if _sent:
    _log = os.open(_sent, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def _audit(event: str, args: "tuple[object, ...]") -> None:
        if event == "os.kill" and os.getpid() == _me:
            os.write(_log, f"{args[0]} {args[1]}\n".encode())

    sys.addaudithook(_audit)

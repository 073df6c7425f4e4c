"""What the command sees is what it would see without sandrun: one probe, run with and without."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import ON_MACOS, Box, launcher

# Everything that a process inherits, as JSON; run by -I -S, so it changes little of it itself.
PROBE = r"""
import json, os, resource, sys
def link(fd):
    try: return os.readlink(f"/proc/self/fd/{fd}")
    except OSError: return None
def read(path):
    with open(path, "rb") as file: return file.read().decode("latin-1")
def cwd():
    try: return os.getcwdb().decode("latin-1")
    except OSError as error: return error.errno
umask = os.umask(0)
status = dict(line.split(":\t") for line in read("/proc/self/status").splitlines() if ":\t" in line)
signals = {name: int(status[name], 16) & ~(3 << 31) for name in ("SigBlk", "SigIgn")}
seen = {
    "argv": read("/proc/self/cmdline"),
    "environment": sorted(entry for entry in read("/proc/self/environ").split("\0")
                          if not entry.startswith(("SANDRUN_", "_="))),
    "cwd": cwd(), "umask": umask, "nice": os.nice(0), "signals": signals,
    "descriptors": {fd: link(fd) for fd in range(100)},
    "group": os.getpgrp(), "session": os.getsid(0),
    "limits": {n: resource.getrlimit(getattr(resource, n)) for n in dir(resource)
               if n.startswith("RLIMIT_") and n not in ("RLIMIT_DATA", "RLIMIT_NPROC")},
    "affinity": sorted(os.sched_getaffinity(0)), "policy": os.sched_getscheduler(0),
    "adjustment": read("/proc/self/oom_score_adj"), "slack": read("/proc/self/timerslack_ns"),
    "ids": os.getresuid() + os.getresgid(), "privileges": status["NoNewPrivs"],
}
os.write(int(os.environ["ANSWER"]), json.dumps(seen).encode())
"""


@pytest.fixture(params=["none", "rlimit", "auto"])
def place(make_box: "object", request: pytest.FixtureRequest) -> Box:
    box: Box = make_box(request.param)  # type: ignore[operator]
    box.env.setdefault("SANDRUN_BACKEND", "auto")
    box.env["SANDRUN_DAEMONS"] = "leave"  # else variables of tools are added: test_daemons
    return box


def seen(place: Box, script: str, *words: "str | bytes", ours: bool) -> "dict[str, object]":
    """What the probe sees, started by `exec "$@"` in a shell that first does `script`."""
    probe = place.root / "probe.py"
    probe.write_text(PROBE)
    before = [*launcher(), "--"] if ours else []
    answer = place.root / "answer"
    with open(answer, "w") as file:
        # The group and session are the shell's own, so those of its caller are not compared.
        subprocess.run(
            ["sh", "-c", f'{script}\nexec "$@"', "sh", *before, sys.executable, "-I", "-S",
             str(probe), *words],
            env={**place.env, "ANSWER": str(file.fileno())},
            cwd=place.project,
            pass_fds=[file.fileno()],
            stdin=subprocess.DEVNULL,
            check=True,
        )  # fmt: skip
    found: dict[str, object] = json.loads(answer.read_text())
    return found


@pytest.mark.parametrize(
    "script",
    [
        ":",
        "umask 027; ulimit -n 200; ulimit -c 0",
        "exec 5</dev/null 7>/dev/null 9<&0",
        "exec 0<&-",
        "exec 1>&-",
        "exec 2>&-",
        "exec 0<&- 1>&- 2>&-",
        "exec >/dev/full 2>/dev/full",
        "mkdir gone; cd gone; rmdir ../gone",
        "trap '' PIPE",
        "trap '' XFSZ USR1 INT QUIT TERM",
        "trap '' HUP CHLD",
        'set -- nice -n 5 "$@"',
        "export LC_ALL=C; unset LANG LC_CTYPE",
        "export LC_ALL=C.UTF-8 EMPTY= 'ODD=a b\nc'",
    ],
)
def test_the_command_inherits_everything(place: Box, script: str) -> None:
    direct = seen(place, script, "word", ours=False)
    contained = seen(place, script, "word", ours=True)
    assert contained == direct


@pytest.mark.skipif(ON_MACOS, reason="not on macOS: what a parent ignores cannot be read")
@pytest.mark.parametrize("shell", ["sh", "bash"])
@pytest.mark.parametrize("ignored", ["PIPE", "XFSZ", "PIPE XFSZ USR2", ""])
def test_what_an_executable_script_ignores(
    place: Box, tmp_path: Path, shell: str, ignored: str
) -> None:
    """The shell that runs it has the script's name."""
    script = tmp_path / "job"
    trap = f"trap '' {ignored}" if ignored else ":"
    script.write_text(f'#!/bin/{shell}\n{trap}\n"$@"; :\n')
    script.chmod(0o755)
    look = ["grep", "SigIgn", "/proc/self/status"]

    def found(*words: str) -> int:
        bits = place.run(*words, *look, argv=[str(script)]).stdout.split()[1]
        return int(bits, 16) & 0x7FFFFFFF  # 32 and 33 are the C library's own

    assert found(*launcher(), "-q", "--") == found()


def test_arguments_of_every_kind(place: Box) -> None:
    words = [b"", b"\xff\xfe not utf-8 \x80", b"a\nb\tc", b"x" * 100_000, b"--", b"-m", b"\x1b[31m"]
    direct = seen(place, ":", *words, ours=False)
    assert "x" * 100_000 in str(direct["argv"])
    assert seen(place, ":", *words, ours=True) == direct


def test_input_of_any_size_passes(place: Box) -> None:
    data = "0123456789" * 200_000
    process = place.start("--", "md5sum", stdin=subprocess.PIPE)
    direct = subprocess.run(["md5sum"], input=data, capture_output=True, text=True, check=True)
    assert place.finish(process, input=data).stdout == direct.stdout


def test_a_reader_that_goes_away_ends_the_writer_by_sigpipe(place: Box) -> None:
    script = '{ "$@" -q -- yes; echo $? >&2; } | head -n 1'
    done = place.run(script, "sh", *launcher(), argv=["sh", "-c"])
    assert (done.stdout, done.stderr) == ("y\n", "141\n")


def test_the_exit_code_is_right_where_nothing_can_be_printed(place: Box) -> None:
    """Warnings and errors are lost where stderr cannot be written; exit codes are not."""
    for script in ("exec >&- 2>&-", "exec >/dev/full 2>/dev/full"):
        for words, code in ((["sh", "-c", "exit 7"], 7), (["no-such-command"], 127)):
            done = place.run(
                f'{script}; exec "$@"', "sh", *launcher(), "--", *words, argv=["sh", "-c"]
            )
            assert done.returncode == code


def test_a_warning_that_nobody_reads_does_not_end_the_command(place: Box) -> None:
    """Our own write to a closed pipe sends us a SIGPIPE, which is not passed to the command."""
    script = '{ { "$@"; echo $? >&3; } 2>&1 >/dev/null | :; } 3>&1'
    grow = (
        "import signal, time; signal.signal(signal.SIGPIPE, signal.SIG_DFL);"
        "x = b'x' * (40 << 20); time.sleep(0.5)"
    )
    words = [*launcher(), "-m", "64M", "--", sys.executable, "-c", grow]
    done = place.run(script, "sh", *words, argv=["sh", "-c"])
    assert done.stdout == "0\n"


def test_a_script_without_an_interpreter_line(place: Box, tmp_path: Path) -> None:
    """As execvp(3) has it, with what the caller ignored."""
    script = tmp_path / "script"
    script.write_text('echo "$0 $1 $#"; grep SigIgn /proc/self/status\n')
    script.chmod(0o755)
    shell = 'trap "" USR2 PIPE; "$@"; :'
    direct = place.run(shell, "sh", "env", script, "a b", argv=["sh", "-c"]).stdout
    ours = place.run(shell, "sh", *launcher(), "--", script, "a b", argv=["sh", "-c"]).stdout
    assert ours == direct
    assert os.fspath(script) in ours

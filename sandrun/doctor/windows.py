"""`sandrun doctor` on Windows. A backend passes if it ended a process that exceeds its limit.

The probe is another sandrun with its own state directory and home, so that it joins no queue and
leaves no record.
"""

import json
import os
import subprocess
import sys
import tempfile

from sandrun import __version__, backends
from sandrun.config import settings
from sandrun.doctor.report import CAUTION, FAIL, PASS, Check, state, trusted
from sandrun.git import guard
from sandrun.model import MIB, size_text

_LIMIT = 32 * MIB
# Prints `all` if its allocation succeeds, which a limit prevents.
_PROBE = "b = bytearray(b'x') * (96 << 20); print('all')"
_SECONDS = 60


def launcher() -> "list[str]":
    """The command that starts this sandrun, never one in the current directory or PYTHONPATH."""
    library = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    code = f"import sys; sys.path.insert(0, {library!r}); "
    return [sys.executable, "-P", "-c", code + "from sandrun.__main__ import start; start()"]


def probe(name: str) -> Check:
    """Run a process that allocates three times its limit in a backend."""
    with tempfile.TemporaryDirectory(prefix="sandrun-doctor-") as scratch:
        env = {**os.environ, "SANDRUN_STATE_DIR": scratch, "XDG_STATE_HOME": scratch}
        env |= {"XDG_CONFIG_HOME": scratch, "SANDRUN_POOL": "off"}
        flags = ["--backend", name, "-m", str(_LIMIT // MIB), "-t", "20", "-q"]
        command = [*launcher(), *flags, "--", sys.executable, "-I", "-S", "-c", _PROBE]
        try:
            done = subprocess.run(
                command, cwd=scratch, env=env, capture_output=True, timeout=_SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            return Check(name, FAIL, f"the probe did not end within {_SECONDS} s")
        message = done.stderr.decode("utf-8", "replace").strip().partition("\n")[0]
        try:
            with open(os.path.join(scratch, "sandrun", "history.jsonl"), encoding="utf-8") as file:
                record = json.loads(file.read())
        except (OSError, ValueError):
            return Check(name, FAIL, message or f"the probe ended with {done.returncode}")
    if record["reason"] != "memory":
        got = "got all it asked for" if b"all" in done.stdout else f"exit {record['exit']}"
        return Check(name, FAIL, f"a probe of 96 MiB was not ended at 32 MiB ({got})")
    peak = size_text(record.get("peak"))
    return Check(name, PASS, f"ended a probe of 96 MiB at 32 MiB, by the kernel (peak {peak})")


def _git() -> Check:
    passed, evidence, fix = guard.leak_check()
    return Check("git", PASS if passed else CAUTION, f"{evidence}; no guard on Windows", fix)


def _system() -> str:
    import platform

    return f"Windows {platform.version()}"


def examine(chosen: settings.Settings) -> "list[Check]":
    """Run all checks, in order, with the settings `chosen` here."""
    versions = f"Python {sys.version.split()[0]}, sandrun {__version__}, {_system()}"
    probes = [probe(name) for name in backends.ORDER]
    own = [state(), trusted(chosen), _git()]
    return [Check("versions", PASS, versions), *probes, *own]

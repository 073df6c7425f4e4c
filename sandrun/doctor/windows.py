"""`sandrun doctor` on Windows: what can enforce limits here, found out by really running over one.

One check per line, as in `sandrun.doctor.posix`. The probe is a sandrun of its own, in a state
directory and a home of its own: it joins no queue and leaves no record.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable

from sandrun import __version__, backends
from sandrun.config import settings
from sandrun.doctor import report
from sandrun.doctor.report import CAUTION, FAIL, PASS, Line, state, trusted
from sandrun.git import guard
from sandrun.model import MIB, size_text

_LIMIT = 32 * MIB
# Says on its standard output that it got all it asked for, which a limit would have refused.
_PROBE = "b = bytearray(b'x') * (96 << 20); print('all')"
_SECONDS = 60


def launcher() -> "list[str]":
    """This very sandrun: no other in the current directory or in PYTHONPATH."""
    library = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    code = f"import sys; sys.path.insert(0, {library!r}); "
    return [sys.executable, "-P", "-c", code + "from sandrun.__main__ import start; start()"]


def probe(name: str) -> Line:
    """Run a process that takes three times its limit on a backend."""
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
            return Line(name, FAIL, f"the probe did not end within {_SECONDS} s")
        said = done.stderr.decode("utf-8", "replace").strip().partition("\n")[0]
        try:
            with open(os.path.join(scratch, "sandrun", "history.jsonl"), encoding="utf-8") as file:
                record = json.loads(file.read())
        except (OSError, ValueError):
            return Line(name, FAIL, said or f"the probe ended with {done.returncode}")
    if record["reason"] != "memory":
        got = "got all it asked for" if b"all" in done.stdout else f"exit {record['exit']}"
        return Line(name, FAIL, f"a probe of 96 MiB was not ended at 32 MiB ({got})")
    peak = size_text(record.get("peak"))
    return Line(name, PASS, f"ended a probe of 96 MiB at 32 MiB, by the kernel (peak {peak})")


def _git() -> Line:
    well, evidence, fix = guard.leak_check()
    return Line("git", PASS if well else CAUTION, f"{evidence}; no guard on Windows", fix)


def _system() -> str:
    import platform

    return f"Windows {platform.version()}"


def examine(chosen: settings.Settings) -> "list[Line]":
    """All checks in order; with the settings that were `chosen` here."""
    versions = f"Python {sys.version.split()[0]}, sandrun {__version__}, {_system()}"
    probes = [probe(name) for name in backends.ORDER]
    own = [state(), trusted(chosen), _git(), *report.worktrees()]
    return [Line("versions", PASS, versions), *probes, *own]


def main(out: "Callable[[str], None]", as_json: bool, chosen: settings.Settings) -> int:
    """Print the checks; exit code 0, or 1 when no kernel backend works here."""
    return report.show(examine(chosen), out, as_json)

"""`sandrun doctor`: which backend is in force and why, found out by really using each.

One check per line: PASS, CAUTION or FAIL, the evidence, and the command that mends it.
"""

import json
import os
import sys
from collections.abc import Callable

from sandrun import __version__, backends, kernel, project, spawn
from sandrun.model import MIB, Limits, SandrunError, Unusable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sandrun.protocol import Backend, Check

_PROBE_LIMIT = 64 * MIB


class Line:
    """One check; see `protocol.Check`."""

    def __init__(self, name: str, ok: bool, evidence: str, fix: str = "") -> None:
        self.name = name
        self.ok = ok
        self.evidence = evidence
        self.fix = fix


def try_backend(backend: "Backend") -> "list[Check]":
    """Open a container and run a real job in it."""
    run_id = "probe" + os.urandom(4).hex()
    try:
        container = backend.open(run_id, Limits(_PROBE_LIMIT))
    except Unusable as error:
        return [Line(backend.name, False, error.text, error.hint)]
    try:
        heritage = spawn.Heritage(set(), False)
        pid = container.spawn(["/bin/sh", "-c", "exit 42"], dict(os.environ), heritage)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        container.kill()
        usage = container.usage()
    except OSError as error:
        return [Line(backend.name, False, f"a probe job failed: {error}")]
    finally:
        container.close()
    if code != 42:
        return [Line(backend.name, False, f"a probe job gave {code} instead of 42")]
    by = "kernel" if backend.kernel else "polling monitor"
    return [Line(backend.name, True, f"ran a probe job; limit by {by}; peak {usage.peak} B")]


def examine() -> "list[Check]":
    """All checks in order."""
    lines: list[Check] = [Line("python", True, f"{sys.version.split()[0]}, sandrun {__version__}")]
    for name in backends.ORDER:
        lines += backends.named(name).check()
    lines.append(Line("prctl", True, f"provided by {kernel.prctl_provider()}"))
    lines.append(_state())
    return lines


def _state() -> Line:
    path = project.state_path(project.find(project.working_directory()))
    try:
        os.close(project.open_state(path))
        return Line("state", True, path)
    except SandrunError as error:
        return Line("state", False, error.text, error.hint)


def main(out: "Callable[[str], None]", as_json: bool) -> int:
    """Print the checks; exit code 0, or 1 when no kernel backend works here."""
    lines = examine()
    usable = [line.name for line in lines if line.ok and line.name in backends.ORDER]
    in_force = usable[0] if usable else "none"
    enforced = bool(usable) and backends.named(in_force).kernel
    if as_json:
        rows = [
            {"name": line.name, "ok": line.ok, "evidence": line.evidence, "fix": line.fix}
            for line in lines
        ]
        out(json.dumps({"v": 1, "backend": in_force, "kernel": enforced, "checks": rows}))
        return 0 if enforced else 1
    for line in lines:
        out(f"{'PASS' if line.ok else 'FAIL'}  {line.name:8}  {line.evidence}")
        if line.fix and not line.ok:
            out(f"      fix: {line.fix}")
    how = "the kernel enforces the limits" if enforced else "a monitor polls: limits can be passed"
    out(f"in force: {in_force} ({how})")
    return 0 if enforced else 1

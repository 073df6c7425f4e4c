"""What `sandrun doctor` checks on every system, and how it shows the checks."""

import json
import os
from collections.abc import Callable

from sandrun import backends, messages
from sandrun.config import project, trust
from sandrun.model import SandrunError, plain
from sandrun.queue import Queue, holder
from sandrun.queue.state import state_path, state_root
from sandrun.supervise import report

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sandrun.config.settings import Settings

PASS, CAUTION, FAIL, UNUSED = "PASS", "CAUTION", "FAIL", "-"


class Check:
    """The result of a check. `status` is PASS, CAUTION, FAIL, or `-` for a function that is not
    needed. `fix` is a command or advice; '' if none is known."""

    def __init__(self, name: str, status: str, evidence: str, fix: str = "") -> None:
        self.name = name
        self.status = status
        self.evidence = evidence
        self.fix = fix


def state() -> Check:
    """Whether the project's queue can be used, and the path of its state directory."""
    try:
        path = state_path(project.find(project.working_directory()))
        queue = Queue(path)
        kept = holder.kept_for(queue)
        queue.close()
        wanted = os.path.join(state_root(), os.path.basename(path))
    except SandrunError as error:
        return Check("state", FAIL, error.text, error.hint)
    if kept:
        evidence = f"{path} is kept for what could not be ended: {report.unkillable(kept[0])}"
        return Check("state", CAUTION, evidence, report.way_to_end(kept[0]).partition(": ")[2])
    if path == wanted:
        return Check("state", PASS, path)
    evidence = f"{path}, because another user has taken {wanted}"
    return Check("state", CAUTION, evidence, f"have it removed: ls -ld {wanted}")


def trusted(chosen: "Settings") -> Check:
    """Which settings in the project's files the user has not trusted yet."""
    if not chosen.untrusted:
        return Check("settings", PASS, "no setting in the project's files waits for trust")
    ignored = "; ".join(
        trust.describe_ignored(file, keys) for file, keys in chosen.untrusted.items()
    )
    return Check("settings", CAUTION, ignored, "if you trust them: sandrun trust")


def show(checks: "list[Check]", out: "Callable[[str], None]", as_json: bool) -> int:
    """Print the checks and return the exit code: 0, or 1 when no kernel backend works here."""
    works = [x.name for x in checks if x.name in backends.ORDER and x.status in (PASS, CAUTION)]
    in_force = works[0] if works else "none"
    enforced = bool(works) and backends.named(in_force).kernel
    if as_json:
        rows = [vars(check) for check in checks]
        out(json.dumps({"v": 1, "backend": in_force, "kernel": enforced, "checks": rows}))
        return 0 if enforced else 1
    colors = {PASS: "32", CAUTION: "33", FAIL: "31", UNUSED: "2"} if messages.colored() else {}
    width = max(len(check.name) for check in checks)
    for check in checks:
        start = f"\x1b[{colors[check.status]}m" if colors else ""
        status = f"{start}{check.status:7}{start and chr(27) + '[0m'}"
        out(f"{status}  {check.name:{width}}  {plain(check.evidence)}")
        if check.fix and check.status in (CAUTION, FAIL):
            out(f"         fix: {plain(check.fix)}")
    how = "the kernel enforces the limits" if enforced else "no kernel enforces the limits here"
    out(f"in force: {in_force} ({how})")
    return 0 if enforced else 1

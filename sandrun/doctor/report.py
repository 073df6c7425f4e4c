"""The checks of `sandrun doctor`, a line each, and how they are shown: on every system."""

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


class Line:
    """One check: `status` is PASS, CAUTION, FAIL or `-`; `fix` a command or ''."""

    def __init__(self, name: str, status: str, evidence: str, fix: str = "") -> None:
        self.name = name
        self.status = status
        self.evidence = evidence
        self.fix = fix


def state() -> Line:
    """Whether the project's queue can be used."""
    try:
        path = state_path(project.find(project.working_directory()))
        queue = Queue(path)
        kept = holder.kept_for(queue)
        queue.close()
        wanted = os.path.join(state_root(), os.path.basename(path))
    except SandrunError as error:
        return Line("state", FAIL, error.text, error.hint)
    if kept:
        evidence = f"{path} is kept for what could not be ended: {report.unkillable(kept[0])}"
        return Line("state", CAUTION, evidence, report.way_to_end(kept[0]).partition(": ")[2])
    if path == wanted:
        return Line("state", PASS, path)
    evidence = f"{path}, because another user has taken {wanted}"
    return Line("state", CAUTION, evidence, f"have it removed: ls -ld {wanted}")


def trusted(chosen: "Settings") -> Line:
    """Which settings of the project's files wait for the user's trust."""
    if not chosen.waiting:
        return Line("settings", PASS, "nothing in the project's files waits for trust")
    held = "; ".join(trust.held_text(file, keys) for file, keys in chosen.waiting.items())
    return Line("settings", CAUTION, held, "if you trust them: sandrun trust")


def worktrees() -> "list[Line]":
    """The worktrees of this repository in which git runs no hooks."""
    from sandrun.integrations import hooks

    found = hooks.missing(project.find(project.working_directory()))
    return [Line("hooks", CAUTION, text, hooks.MAKE_THEM) for text in found]


def show(lines: "list[Line]", out: "Callable[[str], None]", as_json: bool) -> int:
    """Print the checks; exit code 0, or 1 when no kernel backend works here."""
    works = [x.name for x in lines if x.name in backends.ORDER and x.status in (PASS, CAUTION)]
    in_force = works[0] if works else "none"
    enforced = bool(works) and backends.named(in_force).kernel
    if as_json:
        rows = [vars(line) for line in lines]
        out(json.dumps({"v": 1, "backend": in_force, "kernel": enforced, "checks": rows}))
        return 0 if enforced else 1
    colors = {PASS: "32", CAUTION: "33", FAIL: "31", UNUSED: "2"} if messages.colored() else {}
    width = max(len(line.name) for line in lines)
    for line in lines:
        start = f"\x1b[{colors[line.status]}m" if colors else ""
        status = f"{start}{line.status:7}{start and chr(27) + '[0m'}"
        out(f"{status}  {line.name:{width}}  {plain(line.evidence)}")
        if line.fix and line.status in (CAUTION, FAIL):
            out(f"         fix: {plain(line.fix)}")
    how = "the kernel enforces the limits" if enforced else "no kernel enforces the limits here"
    out(f"in force: {in_force} ({how})")
    return 0 if enforced else 1

"""The slice of systemd in which a run's scope may be, and the limits that it would escape there.

The scope is made in our own slice, so the limits of all enclosing slices apply. Invariants
- No run escapes the settings of its own unit (limits, weights, device and network rules). If the
  unit is delegated to us, the run stays in it; otherwise the backend `systemd` is not used.
- A run ends when its unit is stopped: the scope is bound to the unit.
- No run is put below a user's manager that ends before the run should: see `Place.check_end`. The
  manager lives while any process of a session of its user lives, even after the logout (seen with
  252 and 257). So a run that outlives its caller leaves a process in the session: `hold_session`.

Everything is derived from our own group and user, and from the properties that the unit's manager
reports. Sources: systemd.resource-control(5), systemd.kill(5), user@.service(5), logind.conf(5).
"""

import os
import sys

assert sys.platform == "linux"

from sandrun import messages
from sandrun.backends import cgroup2_placement, cgroup_common, cgroup_files
from sandrun.bare import signal
from sandrun.model import Limits, Unusable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, Protocol

    class Manager(Protocol):
        """A connection to a manager of units."""

        def properties(self, wanted: "list[tuple[str, str]]") -> "list[Any]":
            """The value of each (unit, property), None if it has none; unit '' is the manager."""


_LINGERING = "/var/lib/systemd/linger"
"""Has a file for each user whose manager does not end at logout (loginctl(1), enable-linger)."""
_RULES: "dict[str, Any]" = {
    "BPFProgram": [],
    "DeviceAllow": [],
    "DevicePolicy": "auto",
    "IPAddressDeny": [],
    "IPEgressFilterPath": [],
    "IPIngressFilterPath": [],
    "NFTSet": [],
    "RestrictFileSystems": (False, []),
    "RestrictNetworkInterfaces": (False, []),
    "SocketBindDeny": [],
}
"""The properties that are enforced on a unit's group by other means than the group's files, with
their defaults. (A property that allows something restricts nothing alone, except DeviceAllow.)"""
_STOPS_ALL = ("control-group", "mixed")
"""The KillModes in which the end of a service ends all its processes."""
_BINDABLE = ("active", "activating", "reloading", "refreshing")
"""The states of a unit to which a new unit can be bound: systemd would start an inactive one, and
refuses to bind to one that it is stopping (252: TransactionIsDestructive)."""


class Stays(Unusable):
    """A scope is possible, but the run must stay in its unit."""

    notable = True


def user_name() -> str:
    """Our user's name; the uid if it has none."""
    import pwd

    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def lingers() -> bool:
    """Whether our user's manager stays after the last logout."""
    return os.path.exists(f"{_LINGERING}/{user_name()}")


def linger_hint() -> str:
    """The command after which our user's manager stays after the last logout."""
    return f"loginctl enable-linger {user_name()}"


def hold_session() -> None:
    """Start a process that stays in our session's scope after we leave it. It exits when we and the
    keepers, which inherit the pipe from us, have exited."""
    from sandrun.platform import spawn

    end, _ = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            if os.fork() == 0:  # an orphan, which we need not reap
                spawn.become_helper(b"run-session", end)
                os.read(0, 1)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(end)


def _units(parts: "list[str]") -> "list[str]":
    """The units in a path of groups, down to the first that is no slice: groups below that belong
    to another manager."""
    found: list[str] = []
    for name in parts:
        if name.endswith((".slice", ".service", ".scope")):
            found.append(name)
        if not name.endswith(".slice"):
            break
    return found


class Place:
    """The slice for the scope, and the groups and units that the run would leave for it.

    `root`: the system's manager makes the scope, else our user's.
    """

    def __init__(self, own: str, limits: Limits) -> None:
        """`own` is our group; `limits.detached` tells whether the run must outlive a logout."""
        uid = os.geteuid()
        manager = f"user@{uid}.service"
        top = ["user.slice", f"user-{uid}.slice"]
        mount = cgroup_common.own_mount("")
        parts = [part for part in own.removeprefix(mount).split("/") if part]
        self.own = own
        self.outlives = limits.detached or signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        self.outlives_caller = limits.outlives_caller
        self.root = uid == 0
        self.in_manager = not self.root and manager in parts
        self.in_session = self.root or self.in_manager or parts[:2] == top
        """We are root, below our user's manager, or in a session of our user."""
        base = [] if self.root else [*top, manager]
        kept = list(base)
        if self.root or self.in_manager:
            # Below our own manager: in our own slice, as with systemd-run --slice-inherit.
            if self.in_manager:
                base = parts[: parts.index(manager) + 1]
            kept = list(base)
            while len(kept) < len(parts) and parts[len(kept)].endswith(".slice"):
                kept.append(parts[len(kept)])
        spare = "system-sandrun.slice" if self.root else "app-sandrun.slice"
        self.slice = kept[-1] if kept != base else spare
        shared = 0
        while parts[shared : shared + 1] == kept[shared : shared + 1] != []:
            shared += 1
        self.left = ["/".join([mount, *parts[:n]]) for n in range(shared + 1, len(parts) + 1)]
        """The groups that we are in and the run would not be in."""
        self.kept = "/".join([mount, *kept])
        self.same = self.root or self.in_manager
        """Whether the manager of our unit also makes the scope."""
        self.units = _units(parts[shared:])
        """The units that the run would leave."""
        self.unit = self.units[-1] if self.units else ""
        """The innermost of them, our own unit."""

    def check_limits(self) -> None:
        """Raise Stays if a group that would be left has a limit of its own. A limit on processes
        does not count, because every unit has one by default."""
        for group in self.left:
            for name, value in cgroup2_placement.limits_of(group).items():
                if name != "pids.max":
                    raise self._would_escape(f"{name} = {value} of {group}")

    def check_rules(self, manager: "Manager") -> None:
        """Raise Stays if a unit that would be left has one of `_RULES`; `manager` is theirs."""
        asked = [(unit, name) for unit in self.units for name in _RULES]
        for (unit, name), value in zip(asked, manager.properties(asked), strict=True):
            if value not in (None, _RULES[name]):
                raise self._would_escape(f"{name} of {unit}")

    def check_pids(self, manager: "Manager") -> None:
        """Raise Stays if our limit on processes is lower than that of the new slice and than the
        default of every unit; `manager` is the scope's."""
        here = cgroup_files.lowest_limit(self.own, "pids.max")
        if here < cgroup_files.lowest_limit(self.kept, "pids.max"):
            (default,) = manager.properties([("", "DefaultTasksMax")])
            if here < (default or 0):
                raise self._would_escape(f"pids.max = {here} of {self.own} or a group above")

    def check_end(self) -> None:
        """Raise Stays if our user's manager would end before the run should, and the run with it:
        some seconds after the last logout. If we are already below it, only warn."""
        if self.root or (self.in_session and not self.outlives) or lingers():
            return
        name = user_name()
        why = f"this is no session of {name}'s"
        why = "the run must outlive a logout" if self.outlives else why
        text = f"{why}, and the manager of {name} ends at the last logout"
        if not self.in_manager:
            raise Stays(text, linger_hint())
        messages.warn(f"{text}, with this run in it", linger_hint())

    def needs_session(self) -> bool:
        """Whether our user's manager lives until the run's end only if our session does."""
        in_scope = not self.root and self.unit.startswith("session-")
        return in_scope and self.outlives_caller and not lingers()

    def is_delegated(self, manager: "Manager") -> bool:
        """Whether our unit is delegated to us; `manager` is the unit's. It must be queried: a
        user's manager does not mark delegated groups (unlike the system's, `cgroup2_placement`)."""
        (answer,) = manager.properties([(self.unit, "Delegate")])
        return bool(answer)

    def binding(self, manager: "Manager") -> "Iterator[tuple[str, Any]]":
        """The property by which the scope ends with our unit. Our unit may be a scope that ends
        because we, its last process, leave it. So PartOf ends the new one only if a command stops
        ours."""
        if not self.same or (self.outlives and self.unit.startswith(("session-", "user@"))):
            return  # the logout ends those units
        if self.unit.endswith(".scope"):
            yield "PartOf", ("as", [self.unit])
        elif self.unit.endswith(".service"):
            asked = [(self.unit, "KillMode"), (self.unit, "ActiveState")]
            mode, state = manager.properties(asked)
            if mode in _STOPS_ALL and state in _BINDABLE:
                yield "BindsTo", ("as", [self.unit])

    def _would_escape(self, lost: str) -> Stays:
        hint = "start it in a unit of its own: systemd-run --scope -p Delegate=yes ... sandrun ..."
        if self.unit.endswith(".service"):
            to = "--user " if self.in_manager else ""
            hint = f"systemctl {to}edit {self.unit}, add [Service] Delegate=yes, then restart it"
        return Stays(f"a new scope would escape {lost}", hint)

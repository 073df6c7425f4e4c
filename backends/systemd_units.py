"""Where among the units of systemd a run's scope may be, and what it would leave behind there.

The scope is in the slice that we are in, so every limit of a slice around us holds on. Invariants:
- No run leaves what its unit has of its own (limits, shares, device and network rules): it stays
  in the unit where that is delegated to us, else the backend `systemd` is not usable.
- A run ends when its unit is stopped: the scope is bound to the unit.
- No run is put below a user's manager that ends before the run should: see `Place.check_end`. The
  manager goes on while any process of a session of its user lives, also after the logout (seen with
  252 and 257), so a run that was let go leaves one there: `hold_session`.

All by our own group and user, and by what the unit's manager says of it. Sources:
systemd.resource-control(5), systemd.kill(5), user@.service(5), logind.conf(5).
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
        """A line to a manager of units."""

        def properties(self, wanted: "list[tuple[str, str]]") -> "list[Any]":
            """The value of each (unit, property), of the manager for unit ''; None: it has none."""


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
"""What is enforced on a unit's group by others than the group's files, and their defaults. (What
allows something restricts nothing by itself, but for devices.)"""
_STOPS_ALL = ("control-group", "mixed")
"""The KillModes in which the end of a service ends all that is in it."""
_RUNS = ("active", "activating", "reloading", "refreshing")
"""The states of a unit to which something new can be bound: systemd would start one that is over,
and refuses what is bound to one that it stops (252: TransactionIsDestructive)."""


class Stays(Unusable):
    """A scope could be had, but the run must not leave its place for it."""

    notable = True


def user_name() -> str:
    """Our user's name; the number where it has none."""
    import pwd

    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def lingers() -> bool:
    """Whether our user's manager goes on after the last logout."""
    return os.path.exists(f"{_LINGERING}/{user_name()}")


def linger_hint() -> str:
    """The command that makes our user's manager go on."""
    return f"loginctl enable-linger {user_name()}"


def hold_session() -> None:
    """Before we leave our session's scope: leave a process there until we, and the keepers that
    inherit the pipe from us, are gone."""
    from sandrun.platform import spawn

    end, _ = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            if os.fork() == 0:  # an orphan: nobody here waits for it
                spawn.become_helper(b"run-session", end)
                os.read(0, 1)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(end)


def _units(parts: "list[str]") -> "list[str]":
    """The units in a path of groups, down to the first that has processes; what is below that is
    not the same manager's."""
    found: list[str] = []
    for name in parts:
        if name.endswith((".slice", ".service", ".scope")):
            found.append(name)
        if not name.endswith(".slice"):
            break
    return found


class Place:
    """Where the scope shall be, and what it would leave.

    `slice` is the scope's; `root`: the system's manager makes it, else our user's.
    """

    def __init__(self, own: str, limits: Limits) -> None:
        """`own`: our group; `limits.detached`: whether the run shall outlive a logout."""
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
        """Not in a service of the system's or in a session of somebody else's."""
        base = [] if self.root else [*top, manager]
        kept = list(base)
        if self.root or self.in_manager:
            # Below our own manager: in the slice that we are in, as by systemd-run --slice-inherit.
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
        """The groups that hold us now and would not hold the run."""
        self.kept = "/".join([mount, *kept])
        self.same = self.root or self.in_manager
        """Whether the manager that made our unit makes the scope."""
        self.units = _units(parts[shared:])
        """Those that would be left."""
        self.unit = self.units[-1] if self.units else ""
        """The one whose processes we are."""

    def check_limits(self) -> None:
        """Raise Stays for what the groups that would be left have of their own; but for the limit
        on processes, since every unit has one by default."""
        for group in self.left:
            for name, value in cgroup2_placement.limits_of(group).items():
                if name != "pids.max":
                    raise self._leaves(f"{name} = {value} of {group}")

    def check_rules(self, manager: "Manager") -> None:
        """Raise Stays for what the units that would be left have besides; `manager`: theirs."""
        asked = [(unit, name) for unit in self.units for name in _RULES]
        for (unit, name), value in zip(asked, manager.properties(asked), strict=True):
            if value not in (None, _RULES[name]):
                raise self._leaves(f"{name} of {unit}")

    def check_pids(self, manager: "Manager") -> None:
        """Raise Stays for a limit on processes around us that is lower than that of the new place
        and than what every unit has; `manager`: the scope's."""
        here = cgroup_files.lowest_limit(self.own, "pids.max")
        if here < cgroup_files.lowest_limit(self.kept, "pids.max"):
            (default,) = manager.properties([("", "DefaultTasksMax")])
            if here < (default or 0):
                raise self._leaves(f"pids.max = {here} around {self.own}")

    def check_end(self) -> None:
        """Raise Stays if our user's manager would end before the run shall, with all that is below
        it: some seconds after the last logout. Where we are below it already, only warn."""
        if self.root or (self.in_session and not self.outlives) or lingers():
            return
        name = user_name()
        why = f"this is no session of {name}'s"
        why = "the run shall outlive a logout" if self.outlives else why
        text = f"{why}, and the manager of {name} ends at the last logout"
        if not self.in_manager:
            raise Stays(text, linger_hint())
        messages.warn(f"{text}, with this run in it", linger_hint())

    def needs_session(self) -> bool:
        """Whether our user's manager ends before the run shall unless our session lasts so long."""
        in_scope = not self.root and self.unit.startswith("session-")
        return in_scope and self.outlives_caller and not lingers()

    def is_delegated(self, manager: "Manager") -> bool:
        """Whether what is below our unit is left to us; `manager`: the unit's. By its word, as a
        user's manager marks no group (unlike the system's, see cgroup2)."""
        (answer,) = manager.properties([(self.unit, "Delegate")])
        return bool(answer)

    def binding(self, manager: "Manager") -> "Iterator[tuple[str, Any]]":
        """The property that ends the scope with our unit. A scope ends as well when we were the
        last in it and have moved, so only its stop by command counts."""
        if not self.same or (self.outlives and self.unit.startswith(("session-", "user@"))):
            return  # who logs out ends those
        if self.unit.endswith(".scope"):
            yield "PartOf", ("as", [self.unit])
        elif self.unit.endswith(".service"):
            asked = [(self.unit, "KillMode"), (self.unit, "ActiveState")]
            mode, state = manager.properties(asked)
            if mode in _STOPS_ALL and state in _RUNS:
                yield "BindsTo", ("as", [self.unit])

    def _leaves(self, lost: str) -> Stays:
        hint = "start it in a unit of its own: systemd-run --scope -p Delegate=yes ... sandrun ..."
        if self.unit.endswith(".service"):
            to = "--user " if self.in_manager else ""
            hint = f"systemctl {to}edit {self.unit}, add [Service] Delegate=yes, then restart it"
        return Stays(f"a new scope would escape {lost}", hint)

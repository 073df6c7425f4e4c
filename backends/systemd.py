"""systemd: a transient, delegated scope over D-Bus, and inside it everything as in `cgroup2`.

A session's own group is not delegated, so a plain user (through the user's manager) and root on a
systemd host (through the system's) ask for a scope with `Delegate=yes` and our own pid in it. The
supervisor itself has to move there: the kernel asks for write access to the common ancestor of
where a process is and where its child shall start. The command is then cloned into its group below
the scope, so no instruction of it runs outside. systemd removes the scope when it is empty.

D-Bus by jeepney: pure Python and 12 ms to import, where dbus-fast takes 80 and pystemd a compiler.
Sources: systemd's CGROUP_DELEGATION.md, org.freedesktop.systemd1(5).
"""

import os

from sandrun import kernel, messages
from sandrun.backends import cgroup2, groups
from sandrun.model import Limits, Unusable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sandrun.backends.group2 import Group2
    from sandrun.protocol import Check

_PATIENCE = 20.0
"""Seconds for each answer: one was not enough on a slow virtual machine."""
_LINGER = "start the user's manager: loginctl enable-linger $USER (as root for another user)"


def _addresses() -> "list[str]":
    """The buses of the manager that is ours, likeliest first.

    Not by the environment first: it is unset under cron and ssh and another user's under su, while
    the bus is where the uid says (pam_systemd(8), dbus.service of the user).
    """
    if os.geteuid() == 0:
        known, given = "/run/dbus/system_bus_socket", os.environ.get("DBUS_SYSTEM_BUS_ADDRESS")
    else:
        known = f"/run/user/{os.geteuid()}/bus"
        given = os.environ.get("DBUS_SESSION_BUS_ADDRESS")
    return ([f"unix:path={known}"] if os.path.exists(known) else []) + ([given] if given else [])


def _check_host() -> None:
    """Cheap reasons why a scope would enforce nothing, before jeepney is imported."""
    if not os.path.isdir("/run/systemd/system"):
        raise Unusable("systemd does not run here")
    mount = groups.own_mount("")
    if b"memory" not in kernel.read(mount + "/cgroup.controllers").split():
        raise Unusable("the memory controller is not on cgroup v2, so a scope limits nothing")


def start_scope(name: str) -> None:
    """Move this process into a new delegated scope of that name. Raises Unusable."""
    _check_host()
    addresses = _addresses()
    if not addresses:
        who = "the system" if os.geteuid() == 0 else f"uid {os.geteuid()}"
        raise Unusable(f"no D-Bus socket of {who}", "" if os.geteuid() == 0 else _LINGER)
    try:
        from jeepney.io.blocking import open_dbus_connection
        from jeepney.wrappers import DBusErrorResponse
    except ImportError:
        raise Unusable("jeepney is not installed", "pip install jeepney") from None
    problem = ""
    for address in addresses:
        try:
            with open_dbus_connection(address, auth_timeout=_PATIENCE) as connection:
                _call(connection, name)
            return
        except (OSError, ValueError) as error:  # jeepney's own errors are ValueErrors
            problem = f"{address}: {error}"
        except DBusErrorResponse as error:
            problem = f"{address}: {error.name}: {' '.join(map(str, error.data or ()))}"
    raise Unusable(f"systemd gave no scope: {problem}", "" if os.geteuid() == 0 else _LINGER)


def _call(connection: "object", name: str) -> None:
    from jeepney import DBusAddress, MatchRule, message_bus, new_method_call
    from jeepney.io.blocking import DBusConnection, Proxy

    assert isinstance(connection, DBusConnection)
    manager = DBusAddress(
        "/org/freedesktop/systemd1", "org.freedesktop.systemd1", "org.freedesktop.systemd1.Manager"
    )
    ended = MatchRule(
        type="signal",
        interface="org.freedesktop.systemd1.Manager",
        member="JobRemoved",
        path="/org/freedesktop/systemd1",
    )
    # Before the call: the answer's job may be over before we could ask about it.
    Proxy(message_bus, connection).AddMatch(ended)
    with connection.filter(ended) as removals:
        connection.send_and_get_reply(new_method_call(manager, "Subscribe"), timeout=_PATIENCE)
        root = os.geteuid() == 0
        properties = [
            ("Description", ("s", "a run of sandrun")),
            ("Slice", ("s", "system-sandrun.slice" if root else "app-sandrun.slice")),
            ("Delegate", ("b", True)),
            ("CollectMode", ("s", "inactive-or-failed")),
            ("PIDs", ("au", [os.getpid()])),
        ]
        call = new_method_call(
            manager, "StartTransientUnit", "ssa(sv)a(sa(sv))", (name, "fail", properties, [])
        )
        from jeepney.wrappers import unwrap_msg

        (job,) = unwrap_msg(connection.send_and_get_reply(call, timeout=_PATIENCE))
        while True:
            _, path, _, result = connection.recv_until_filtered(removals, timeout=_PATIENCE).body
            if path == job:
                break
    if result != "done":
        raise ValueError(f"the job of {name} ended as {result}")


class SystemdBackend:
    """See `sandrun.protocol.Backend`."""

    name = "systemd"
    kernel = True

    def open(self, run_id: str, limits: Limits) -> "Group2":
        own = groups.own_group("")
        if cgroup2.is_ours(own):  # a nested run: a new scope would leave the outer one's limits
            return cgroup2.Cgroup2Backend().open(run_id, limits)
        escaped = cgroup2.limits_around(own)
        if escaped:
            raise Unusable(f"a new scope would escape {escaped}")
        name = f"{groups.PREFIX}{run_id}.scope"
        start_scope(name)
        own = groups.own_group("")
        messages.detail(f"moved into {own}")
        if os.path.basename(own) != name:
            raise Unusable(f"systemd left us in {own} instead of {name}")
        return cgroup2.Cgroup2Backend().open(run_id, limits)

    def attach(self, token: str) -> "Group2":
        return cgroup2.Cgroup2Backend().attach(token)

    def check(self) -> "list[Check]":
        from sandrun.doctor import try_backend

        return try_backend(self)

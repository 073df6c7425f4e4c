"""systemd: a transient, delegated scope over D-Bus, and inside it everything as in `cgroup2`.

A session's own group is not delegated, so a plain user (through the user's manager) and root on a
systemd host (through the system's) ask for a scope with `Delegate=yes` and our own pid in it. The
supervisor itself has to move there: the kernel asks for write access to the common ancestor of
where a process is and where its child shall start. The command is then cloned into its group below
the scope, so no instruction of it runs outside. systemd removes the scope when it is empty; what
lives on in the scope of a run whose supervisor and keepers are dead, the next run ends.

D-Bus by jeepney: pure Python and 12 ms to import, where dbus-fast takes 80 and pystemd a compiler.
Sources: systemd's CGROUP_DELEGATION.md, org.freedesktop.systemd1(5).
"""

import os

from sandrun import kernel, messages
from sandrun.backends import cgroup2, groups
from sandrun.model import Limits, Unusable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from sandrun.backends.group2 import Group2

_PATIENCE = 20.0
"""Seconds for each answer: one was not enough on a slow virtual machine."""
_PRIVATE = "systemd/private"
_LINGER = "start the user's manager: loginctl enable-linger $USER (as root for another user)"


def _addresses() -> "list[str]":
    """Where the manager that is ours listens, likeliest first: its bus, then its own socket.

    Not by the environment first: it is unset under cron and ssh and another user's under su, while
    the bus is where the uid says (pam_systemd(8), dbus.service of the user). The manager's private
    socket is what systemctl falls back to where no bus runs.
    """
    root = os.geteuid() == 0
    base = "/run" if root else f"/run/user/{os.geteuid()}"
    bus = "/run/dbus/system_bus_socket" if root else f"{base}/bus"
    given = os.environ.get("DBUS_SYSTEM_BUS_ADDRESS" if root else "DBUS_SESSION_BUS_ADDRESS")
    found = [f"unix:path={bus}"] if os.path.exists(bus) else []
    found += [given] if given else []
    private = f"{base}/{_PRIVATE}"
    return found + ([private] if os.path.exists(private) else [])


def _check_host() -> None:
    """Cheap reasons why a scope would enforce nothing, before jeepney is imported."""
    if not os.path.isdir("/run/systemd/system"):
        raise Unusable("systemd does not run here")
    mount = groups.own_mount("")
    if b"memory" not in kernel.read(mount + "/cgroup.controllers").split():
        raise Unusable("the memory controller is not on cgroup v2, so a scope limits nothing")


def start_scope(name: str) -> None:
    """Move this process into a new delegated scope of that name. Raises Unusable."""
    addresses = _addresses()
    hint = "" if os.geteuid() == 0 else _LINGER
    if not addresses:
        who = "the system" if os.geteuid() == 0 else f"uid {os.geteuid()}"
        raise Unusable(f"no D-Bus socket of {who}", hint)
    problem = ""
    for address in addresses:
        try:
            with _Line(address) as line:
                _ask(line, name)
            return
        except (OSError, ValueError) as error:  # jeepney's own errors are ValueErrors
            problem = f"{address}: {error}"
    raise Unusable(f"systemd gave no scope: {problem}", hint)


class _Line:
    """D-Bus messages over a socket; the same for a bus and for systemd's own, which has no bus's
    Hello and AddMatch, and tells all signals to everybody."""

    def __init__(self, address: str) -> None:
        from jeepney.bus import get_bus
        from jeepney.io.blocking import prep_socket
        from jeepney.low_level import Parser

        self.is_bus = not address.endswith(_PRIVATE)
        self.socket = (
            prep_socket(get_bus(address), timeout=_PATIENCE) if self.is_bus else _direct(address)
        )
        self.socket.settimeout(_PATIENCE)
        _check_namespace(self.socket)
        self.parser = Parser()
        self.serial = 0
        self.seen: list[Any] = []

    def __enter__(self) -> "_Line":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def call(self, message: "Any") -> "Any":
        """Send a method call; the body of its answer. Raises ValueError with an error's text."""
        from jeepney.low_level import HeaderFields
        from jeepney.wrappers import DBusErrorResponse, unwrap_msg

        self.serial += 1
        self.socket.sendall(message.serialise(serial=self.serial))
        while True:
            answer = self._receive()
            if answer.header.fields.get(HeaderFields.reply_serial) == self.serial:
                try:
                    return unwrap_msg(answer)
                except DBusErrorResponse as error:
                    raise ValueError(f"{error.name}: {error.data}") from None
            self.seen.append(answer)

    def job_result(self, job: str) -> str:
        """Wait for the JobRemoved of a job, which may have come before the answer that named it."""
        from jeepney.low_level import HeaderFields

        while True:
            message = self.seen.pop(0) if self.seen else self._receive()
            if message.header.fields.get(HeaderFields.member) == "JobRemoved":
                _, path, _, result = message.body
                if path == job:
                    return str(result)

    def _receive(self) -> "Any":
        while (message := self.parser.get_next_message()) is None:
            data = self.socket.recv(4096)
            if not data:
                raise ValueError("the connection was closed")
            self.parser.add_data(data)
        return message


def _check_namespace(line: "Any") -> None:
    """Raise Unusable where our number is another process's for whoever listens: the kernel gives a
    peer's number as we have it, and 0 of one outside of our pid namespace (unix(7))."""
    import socket
    import sys

    who = line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)  # pid, uid, gid
    if not int.from_bytes(who[:4], sys.byteorder):
        raise Unusable("systemd is outside of our pid namespace: it would move another process")


def _direct(path: str) -> "Any":
    """A socket to systemd itself, without a bus between. BEGIN goes with the rest (as sd-bus sends
    it): systemd sleeps on a message that it had read together with a BEGIN that came later."""
    import socket

    line = socket.socket(socket.AF_UNIX)
    line.settimeout(_PATIENCE)
    line.connect(path)
    line.sendall(b"\0AUTH EXTERNAL %s\r\nBEGIN\r\n" % str(os.geteuid()).encode().hex().encode())
    answer = b""
    while not answer.endswith(b"\r\n"):
        data = line.recv(4096)
        if not data:
            raise ValueError("the connection was closed")
        answer += data
    if not answer.startswith(b"OK "):
        raise ValueError(answer.decode("utf-8", "replace").strip())
    return line


def _ask(line: _Line, name: str) -> None:
    from jeepney import DBusAddress, MatchRule, message_bus, new_method_call

    manager = DBusAddress(
        "/org/freedesktop/systemd1", "org.freedesktop.systemd1", "org.freedesktop.systemd1.Manager"
    )
    # Subscribed before the call: the job may be over before we could ask about it.
    if line.is_bus:
        line.call(message_bus.Hello())
        line.call(message_bus.AddMatch(MatchRule(type="signal", member="JobRemoved")))
    line.call(new_method_call(manager, "Subscribe"))
    root = os.geteuid() == 0
    properties = [
        ("Description", ("s", "a run of sandrun")),
        ("Slice", ("s", "system-sandrun.slice" if root else "app-sandrun.slice")),
        ("Delegate", ("b", True)),
        ("CollectMode", ("s", "inactive-or-failed")),
        ("PIDs", ("au", [os.getpid()])),
    ]
    body: tuple[Any, ...] = (name, "fail", properties, [])
    call = new_method_call(manager, "StartTransientUnit", "ssa(sv)a(sa(sv))", body)
    (job,) = line.call(call)
    result = line.job_result(job)
    if result != "done":
        raise ValueError(f"the job of {name} ended as {result}")


def _collect(beside: str) -> None:
    """End the groups of dead runs (`groups.collect`) in the scopes of that slice."""
    from sandrun.backends import group2

    for name in os.listdir(beside):
        if name.endswith(".scope") and groups.is_run(name.removesuffix(".scope")):
            groups.collect(f"{beside}/{name}", group2.end_stale)


class SystemdBackend:
    """See `sandrun.protocol.Backend`."""

    name = "systemd"
    kernel = True

    def open(self, run_id: str, limits: Limits) -> "Group2":
        _check_host()
        own = groups.own_group("")
        if cgroup2.is_ours(own):  # a nested run: a new scope would leave the outer one's limits
            return cgroup2.Cgroup2Backend().open(run_id, limits)
        escaped = cgroup2.limits_around(own)
        if escaped:
            raise Unusable(
                f"a new scope would escape {escaped}",
                "start sandrun alone in a unit: systemd-run --scope -p MemoryMax=... sandrun ...",
            )
        name = f"{groups.PREFIX}{run_id}.scope"
        start_scope(name)
        own = groups.own_group("")
        messages.detail(f"moved into {own}")
        if os.path.basename(own) != name:
            raise Unusable(f"systemd left us in {own} instead of {name}")
        _collect(os.path.dirname(own))
        return cgroup2.Cgroup2Backend().open(run_id, limits)

    def attach(self, run_id: str, token: str) -> "Group2":
        return cgroup2.Cgroup2Backend().attach(run_id, token)

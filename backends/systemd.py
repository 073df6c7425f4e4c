"""systemd: a transient, delegated scope requested over D-Bus, and in it everything as in `cgroup2`.

A session's group is not delegated. So sandrun asks the user's manager, or as root the system's, for
a scope with `Delegate=yes` that contains sandrun's own pid. The supervisor itself must move there,
because the kernel requires write access to the common ancestor of a process's group and the group
of its child. Then the command is cloned into its group below the scope, so none of its instructions
runs outside. systemd removes the scope when it is empty. If the supervisor and the keepers of a run
are dead, the next run kills the processes left in its scope. The same call makes the run's own
slice, which contains the scope (`systemd_slice`).

`systemd_units` decides where the scope may be, and which runs must not have one.

jeepney speaks D-Bus: it is pure Python and takes 12 ms to import; dbus-fast takes 80 ms, and
pystemd needs a compiler.
Sources: systemd's CGROUP_DELEGATION.md, org.freedesktop.systemd1(5).
"""

import os
import sys

assert sys.platform == "linux"

from sandrun import messages
from sandrun.backends import cgroup2_placement, cgroup_common, systemd_units
from sandrun.model import Limits, Unusable
from sandrun.platform import processes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, TypeVar

    from sandrun.backends.cgroup2 import Group2
    from sandrun.types import BackendName

    T = TypeVar("T")

_ROOT = "/org/freedesktop/systemd1"
_NAME = "org.freedesktop.systemd1"
_PATIENCE = 20.0
"""Seconds to wait for each answer: 1 s was too short on a slow virtual machine."""
_PRIVATE = "systemd/private"
_LINGER = "start the user's manager: loginctl enable-linger $USER (as root for another user)"


def _addresses(root: bool) -> "list[str]":
    """The addresses of the system's manager (`root`) or our user's, likeliest first: its bus, then
    its own socket.

    The environment is not first: it is unset under cron and ssh, and another user's under su. The
    path of the bus follows from the uid (pam_systemd(8), dbus.service of the user). systemctl also
    falls back to the manager's private socket if no bus runs.
    """
    base = "/run" if root else f"/run/user/{os.geteuid()}"
    bus = "/run/dbus/system_bus_socket" if root else f"{base}/bus"
    given = os.environ.get("DBUS_SYSTEM_BUS_ADDRESS" if root else "DBUS_SESSION_BUS_ADDRESS")
    found = [f"unix:path={bus}"] if os.path.exists(bus) else []
    found += [given] if given else []
    private = f"{base}/{_PRIVATE}"
    return found + ([private] if os.path.exists(private) else [])


def _check_host() -> None:
    """Raise Unusable if a scope would enforce nothing; cheap, before jeepney is imported."""
    if not os.path.isdir("/run/systemd/system"):
        raise Unusable("systemd does not run here")
    mount = cgroup_common.own_mount("")
    if b"memory" not in processes.read(mount + "/cgroup.controllers").split():
        raise Unusable("the memory controller is not on cgroup v2, so a scope limits nothing")


def _ask(root: bool, work: "Callable[[_Line], T]") -> "T":
    """Call `work` with a connection to the system's manager (`root`) or our user's; return its
    result. Raises Unusable."""
    addresses = _addresses(root)
    hint = "" if root else _LINGER
    if not addresses:
        whose = "the system" if root else f"uid {os.geteuid()}"
        raise Unusable(f"no D-Bus socket of {whose}", hint)
    problem = ""
    for address in addresses:
        try:
            with _Line(address) as line:
                _greet(line)
                return work(line)
        except (OSError, ValueError) as error:  # jeepney's own errors are ValueErrors
            problem = f"{address}: {error}"
    raise Unusable(f"systemd gave no scope: {problem}", hint)


class _Line:
    """A D-Bus connection to a bus or to systemd's own socket. The latter has no Hello and AddMatch,
    and sends all signals to every client."""

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
        """Send a method call; return the body of its answer. Raises ValueError with the text of an
        error."""
        (answer,) = self.calls([message])
        if isinstance(answer, ValueError):
            raise answer
        return answer

    def calls(self, messages: "list[Any]") -> "list[Any]":
        """Send method calls together; return the body of each answer, or its error as a
        ValueError."""
        from jeepney.low_level import HeaderFields
        from jeepney.wrappers import DBusErrorResponse, unwrap_msg

        numbers = range(self.serial + 1, self.serial + 1 + len(messages))
        self.serial += len(messages)
        sent = zip(numbers, messages, strict=True)
        self.socket.sendall(b"".join(message.serialise(serial=n) for n, message in sent))
        found: dict[int, Any] = {}
        while len(found) < len(messages):
            answer = self._receive()
            number = answer.header.fields.get(HeaderFields.reply_serial)
            if number not in numbers:
                self.seen.append(answer)
                continue
            try:
                found[number] = unwrap_msg(answer)
            except DBusErrorResponse as error:
                found[number] = ValueError(f"{error.name}: {error.data}")
        return [found[number] for number in numbers]

    def properties(self, wanted: "list[tuple[str, str]]") -> "list[Any]":
        """The value of each (unit, property), None if it has none; unit '' is the manager."""
        from jeepney import DBusAddress, new_method_call

        calls = []
        for unit, name in wanted:
            path = _ROOT + ("/unit/" + _escaped(unit) if unit else "")
            kind = unit.rpartition(".")[2].capitalize() if unit else "Manager"
            kind = "Unit" if name == "ActiveState" else kind
            at = DBusAddress(path, _NAME, "org.freedesktop.DBus.Properties")
            calls.append(new_method_call(at, "Get", "ss", (f"{_NAME}.{kind}", name)))
        return [None if isinstance(a, ValueError) else a[0][1] for a in self.calls(calls)]

    def job_result(self, job: str) -> str:
        """Wait for the JobRemoved signal of a job, which may precede the answer that names the job;
        return its result."""
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
    """Raise Unusable if the peer is outside our pid namespace, where our pid is another process's.
    SO_PEERCRED then has the pid 0 (unix(7))."""
    import socket
    import sys

    who = line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)  # pid, uid, gid
    if not int.from_bytes(who[:4], sys.byteorder):
        raise Unusable("systemd is outside our pid namespace: it would move another process")


def _escaped(unit: str) -> str:
    """The name of a unit as in the path of its object (sd_bus_path_encode(3))."""
    return "".join(
        c if c.isascii() and c.isalnum() and (n or not c.isdigit()) else f"_{ord(c):02x}"
        for n, c in enumerate(unit)
    )


def _direct(path: str) -> "Any":
    """A socket to systemd itself, without a bus. BEGIN is sent together with AUTH, as by sd-bus: if
    systemd reads a later BEGIN together with a message, it sleeps instead of handling that
    message."""
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


def _greet(line: _Line) -> None:
    """Subscribe to signals before the call, because the job may end before we could query it."""
    from jeepney import DBusAddress, MatchRule, message_bus, new_method_call

    calls = [new_method_call(DBusAddress(_ROOT, _NAME, f"{_NAME}.Manager"), "Subscribe")]
    if line.is_bus:
        match = MatchRule(type="signal", member="JobRemoved")
        calls = [message_bus.Hello(), message_bus.AddMatch(match), *calls]
    for answer in line.calls(calls):
        if isinstance(answer, ValueError):
            raise answer


def _start(line: _Line, place: systemd_units.Place, run_id: str, limits: Limits) -> None:
    """Move this process into a new delegated scope, in a new slice if systemd accepts that. Raises
    ValueError."""
    from sandrun.backends import systemd_slice

    binding = list(place.binding(line))
    properties = [("Delegate", ("b", True)), *binding]
    own_slice = systemd_slice.name_of(place.slice, run_id)
    try:
        if own_slice:
            units = [(own_slice, systemd_slice.properties(limits) + binding)]
            _start_scope(line, run_id, own_slice, properties, units)
            if overridden := systemd_slice.overridden(own_slice, limits):
                line.calls([_set_properties(own_slice, overridden)])
            return
    except ValueError as error:
        messages.decision(f"systemd: no slice of the run's own: {error}")
    _start_scope(line, run_id, place.slice, properties)


def _start_scope(
    line: _Line,
    name: str,
    slice_name: str,
    properties: "list[tuple[str, Any]]",
    units: "Sequence[tuple[str, list[tuple[str, Any]]]]" = (),
) -> None:
    """Move this process into a new scope in a slice; systemd makes `units` first. Raises
    ValueError."""
    unit = f"{cgroup_common.PREFIX}{name}.scope"
    own = [
        ("Description", ("s", "a run of sandrun")),
        ("Slice", ("s", slice_name)),
        ("CollectMode", ("s", "inactive-or-failed")),
        ("PIDs", ("au", [os.getpid()])),
        *properties,
    ]
    signature = "ssa(sv)a(sa(sv))"
    (job,) = line.call(_manage("StartTransientUnit", signature, unit, "fail", own, list(units)))
    result = line.job_result(job)
    if result != "done":
        raise ValueError(f"the job of {unit} ended as {result}")


def _manage(method: str, signature: str, *body: "Any") -> "Any":
    """A message to the manager of units."""
    from jeepney import DBusAddress, new_method_call

    return new_method_call(DBusAddress(_ROOT, _NAME, f"{_NAME}.Manager"), method, signature, body)


def _set_properties(unit: str, properties: "list[tuple[str, Any]]") -> "Any":
    """The message that sets properties of a unit until it ends."""
    return _manage("SetUnitProperties", "sba(sv)", unit, True, properties)


class SystemdBackend:
    """See `sandrun.backends.protocol.Backend`."""

    name: "BackendName" = "systemd"
    kernel = True

    def open(self, run_id: str, limits: Limits) -> "Group2":
        _check_host()
        own = cgroup_common.own_group("")
        if cgroup2_placement.is_ours(
            own
        ):  # a nested run: a new scope would leave the outer one's limits
            return cgroup2_placement.Cgroup2Backend().open(run_id, limits)
        place = systemd_units.Place(own, limits)
        try:
            _move(place, run_id, limits)
        except systemd_units.Stays:
            delegated = _ask(not place.in_manager, place.is_delegated)
            container = cgroup2_placement.stay_in(own, run_id, limits, delegated)
            if not container:
                raise
            return container
        own = cgroup_common.own_group("")
        messages.detail(f"moved into {own}")
        if os.path.basename(own) != f"{cgroup_common.PREFIX}{run_id}.scope":
            raise Unusable(f"systemd left us in {own}")
        return _open_in(own, _Units(place, run_id), limits)

    def attach(self, run_id: str, token: str) -> "Group2":
        cgroup_common.check_ours(token, run_id, "")
        from sandrun.backends import systemd_slice

        return systemd_slice.attach(token)


class _Units:
    """Requests of a run to the manager that made its scope. Each method raises Unusable."""

    def __init__(self, place: systemd_units.Place, run_id: str) -> None:
        self.place = place
        self.run_id = run_id

    def step_aside(self) -> None:
        """Move this process to a new scope outside of the run's slice."""
        from sandrun.backends import systemd_slice

        name = self.run_id + systemd_slice.SUPERVISOR
        _ask(self.place.root, lambda line: _start_scope(line, name, self.place.slice, []))

    def change(self, unit: str, properties: "list[tuple[str, Any]]") -> None:
        """Set properties of a unit until it ends."""
        _ask(self.place.root, lambda line: line.call(_set_properties(unit, properties)))

    def stop(self, find: "Callable[[], list[str]]", mode: str) -> None:
        """Ask the manager to stop the units that `find` returns, without waiting for that. With
        the mode `fail` it refuses if a job of the unit is pending, with `replace` it cancels that
        job. `find` is called after an answer of the manager, which handles one event at a time."""

        def work(line: _Line) -> None:
            line.calls([_manage("StopUnit", "ss", unit, mode) for unit in find()])

        _ask(self.place.root, work)


def _open_in(scope: str, units: _Units, limits: Limits) -> "Group2":
    """A container in the scope that we are in. Raises Unusable."""
    from sandrun.backends import systemd_slice

    if empty := systemd_slice.collect(scope):

        def find() -> "list[str]":
            # The manager has answered since. So it is not about to fill one that is still empty.
            return [os.path.basename(path) for path in empty if systemd_slice.is_empty(path)]

        units.stop(find, "fail")
    parent = cgroup2_placement.find_parent(limits.controllers())
    own_slice = systemd_slice.slice_of(scope)
    if own_slice and systemd_slice.is_limited(own_slice, limits, units):

        def make(path: str, limits: Limits) -> "Group2":
            return systemd_slice.InSlice(path, limits, units)

        return cgroup2_placement.open_below(parent, units.run_id, limits, make)
    return cgroup2_placement.open_below(parent, units.run_id, limits)


def _move(place: systemd_units.Place, run_id: str, limits: Limits) -> None:
    """Move into a scope. Raises Stays if the run must stay in its unit, Unusable otherwise."""
    place.check_limits()
    if _addresses(place.root):
        place.check_end()
    if place.needs_session():
        systemd_units.hold_session()
    if not place.same and not place.in_session:
        _ask(True, place.check_rules)

    def start(line: _Line) -> None:
        if place.same:
            place.check_rules(line)
        place.check_pids(line)
        _start(line, place, run_id, limits)

    _ask(place.root, start)

"""cgroup v2 where a subtree is ours to use: the kernel enforces every limit on the whole tree.

Finds the place for the run's group, below our own group so that every limit around us holds too:
- beside the processes of an outer run, or beside a leaf that we made before;
- in our own group if only we live in it (we move to a leaf), or if it is the root of a container's
  cgroup namespace (all its processes move to a leaf: no group may hold processes and hand out
  controllers, EBUSY both ways);
- on a host without systemd, in the nearest group above that has no limits of its own.
A group of systemd's with other processes in it is not ours: the backend `systemd` asks for one.
"""

import errno
import os
import time

from sandrun import messages
from sandrun.backends import cgroup_common
from sandrun.model import Limits, Unusable, error_text
from sandrun.platform import processes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from sandrun.backends.cgroup2 import Group2
    from sandrun.types import BackendName

LEAF = "sandrun.leaf"
"""The group that takes the processes of a group that we use; not a run's name: never collected."""
_DELEGATE = (
    "as root: systemctl edit user@.service, add [Service] Delegate=cpu cpuset io memory pids, "
    "then log in again"
)
"""The hint for controllers that systemd has but does not hand on."""
_DRAIN_SECONDS = 1.0


def find_parent(needed: "dict[str, bool]") -> str:
    """The group in which to make the run's group, its controllers enabled. Raises Unusable."""
    own = cgroup_common.own_group("")
    _check_ours(own)
    if is_ours(own):
        parent = os.path.dirname(own)
        _check_writable(parent)
        enable(parent, needed)
        return parent
    is_root = not os.path.exists(own + "/cgroup.type")
    members = processes.read(own + "/cgroup.procs").split()
    alone = members == [str(os.getpid()).encode()]
    if is_root or not members:
        _check_writable(own)
        enable(own, needed)
        return own
    if os.path.ismount(own) or (alone and (_is_delegated(own) or limits_around(own))):
        _check_writable(own)
        _drain(own, needed)
        return own
    if not os.path.isdir("/run/systemd/system"):
        return _above(own, needed)
    why = "is not delegated to us" if alone else "holds other processes as well"
    raise Unusable(
        f"our own group {own} {why}, and systemd manages it",
        "give the run a scope: systemd-run --user --scope -p Delegate=yes sandrun ...",
    )


def is_ours(own: str) -> bool:
    """Whether a group is one of those that we make for processes: a run's, or a leaf."""
    parent, name = os.path.split(own)
    in_run = name == cgroup_common.MAIN and os.path.basename(parent).startswith(
        cgroup_common.PREFIX
    )
    return in_run or name == LEAF


_DEFAULTS = {
    **dict.fromkeys(("cpuset.cpus", "cpuset.mems", "io.latency"), ""),
    **dict.fromkeys(("cpu.weight", "io.bfq.weight", "io.weight"), "100"),
    **dict.fromkeys(("memory.high", "memory.swap.high"), "max"),
    **dict.fromkeys(("cpu.idle", "memory.low", "memory.min"), "0"),
    "cpuset.cpus.partition": "member",
}
"""What is in the files that restrict or favour a group where nobody wrote to them, besides `*.max`
(Documentation/admin-guide/cgroup-v2.rst)."""


def limits_of(group: str) -> "dict[str, str]":
    """Every limit and share that a group has of its own, by the name of its file."""
    found = {}
    for name in sorted(os.listdir(group)):
        if name in _DEFAULTS or name.endswith(".max"):
            try:
                value = " ".join(processes.read(f"{group}/{name}").decode().split())
            except OSError:
                continue
            if _is_set(name, value):
                found[name] = value
    return found


def _is_set(name: str, value: str) -> bool:
    if name in _DEFAULTS:
        return value.removeprefix("default ") != _DEFAULTS[name]
    # `max`, `res_a max`, `hca_handle=max`; of cpu.max `max 100000` the second is no limit.
    words = value.replace("=", " ").split()[: 1 if name == "cpu.max" else None]
    return any(word[0].isdigit() for word in words)


def limits_around(own: str) -> str:
    """A limit of our own group or of one between it and its slice: what a run placed elsewhere in
    that slice would escape; '' if there is none."""
    while not (own.endswith(".slice") or os.path.ismount(own)):
        for name, value in limits_of(own).items():
            # systemd gives every unit a pids.max of its own by default (TasksMax=15%).
            if name != "pids.max":
                return f"{name} = {value} of {own}"
        own = os.path.dirname(own)
    return ""


def _is_delegated(own: str) -> bool:
    """Whether the group's manager leaves what is below it to us (CGROUP_DELEGATION.md): systemd
    takes controllers back from a group that it did not delegate whenever it reloads."""
    if not os.path.isdir("/run/systemd/system"):
        return True  # nobody manages it
    if os.path.basename(own).startswith(cgroup_common.PREFIX):
        return True  # a scope that the backend systemd asked for
    for name in ("trusted.delegate", "user.delegate"):
        try:
            return os.getxattr(own, name) == b"1"
        except OSError:
            continue
    return False


def _check_ours(own: str) -> None:
    try:
        kind = processes.read(own + "/cgroup.type").decode().strip()
    except FileNotFoundError:
        if not os.path.isdir(own):
            raise Unusable(f"our own group {own} is not visible here") from None
        return  # the root has no type
    except OSError as error:
        raise Unusable(f"{own}: {error.strerror}") from None
    if kind not in ("domain", "domain threaded"):
        raise Unusable(f"our own group {own} is {kind}: a memory limit cannot hold there")


def _check_writable(group: str) -> None:
    for name in ("", "/cgroup.procs", "/cgroup.subtree_control"):
        if not os.access(group + name, os.W_OK):
            read_only = os.statvfs(group).f_flag & os.ST_RDONLY
            raise Unusable(
                f"{group}{name} is {'on a read-only mount' if read_only else 'not writable by us'}",
                "in a container, start it with: podman run --security-opt unmask=/sys/fs/cgroup, "
                "or docker run --security-opt writable-cgroups=true (Docker 28)"
                if read_only
                else "",
            )


def _drain(own: str, needed: "dict[str, bool]") -> None:
    """Move every process of `own` into a leaf, so that it may hand out its controllers."""
    available = processes.read(own + "/cgroup.controllers").split()
    if b"memory" not in available:
        raise Unusable(f"the memory controller is not available in {own}", delegation_hint())
    leaf = f"{own}/{LEAF}"

    def move_all() -> None:
        os.makedirs(leaf, exist_ok=True)
        while members := processes.read(own + "/cgroup.procs").split():
            for pid in members:
                _move(pid, leaf)

    messages.detail(f"moving the processes of {own} to {leaf}")
    guarded(move_all, f"move the processes of {own} to a leaf")
    # A process that a runtime adds to `own` meanwhile makes the kernel answer EBUSY.
    enable(own, needed, _DRAIN_SECONDS)


def _move(pid: bytes, group: str) -> None:
    fd = os.open(group + "/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, pid)
    except ProcessLookupError:
        pass
    finally:
        os.close(fd)


def _above(own: str, needed: "dict[str, bool]") -> str:
    """The nearest group above `own` that can take a run, without leaving a limit around us."""
    here = own
    while not os.path.ismount(here):
        limit = limits_around(here)
        if limit:
            raise Unusable(f"a run beside {own} would escape {limit}")
        here = os.path.dirname(here)
        members = processes.read(here + "/cgroup.procs").split()
        if not members or not os.path.exists(here + "/cgroup.type"):
            _check_writable(here)
            enable(here, needed)
            return here
    raise Unusable(f"no group above {own} is free of processes")


def enable(parent: str, needed: "dict[str, bool]", patience: float = 0.0) -> None:
    """Enable the controllers for the children of `parent`; the values tell which are a must.

    Raises Unusable. `patience`: seconds for which EBUSY is tried again.
    """
    available = processes.read(parent + "/cgroup.controllers").decode().split()
    enabled = processes.read(parent + "/cgroup.subtree_control").decode().split()
    for name, must in needed.items():
        if name in enabled:
            continue
        if name not in available:
            if must:
                raise Unusable(
                    f"the {name} controller is not available in {parent} (it has: "
                    f"{' '.join(available) or 'none'})",
                    delegation_hint(),
                )
            continue
        _enable_one(parent, name, must, time.monotonic() + patience)


def _enable_one(parent: str, name: str, must: bool, deadline: float) -> None:
    while True:
        try:
            fd = os.open(parent + "/cgroup.subtree_control", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, f"+{name}".encode())
                messages.detail(f"{parent}/cgroup.subtree_control: +{name}")
            finally:
                os.close(fd)
            return
        except OSError as error:
            if error.errno == errno.EBUSY and time.monotonic() < deadline:
                time.sleep(0.001)
                continue
            if must:
                raise Unusable(
                    f"cannot enable the {name} controller in {parent}: {error.strerror}"
                ) from None
            return


def delegation_hint() -> str:
    """How to get controllers from systemd; '' where it is not the one that has them."""
    return _DELEGATE if os.path.isdir("/run/systemd/system") else ""


def guarded(work: "Callable[[], None]", what: str) -> None:
    """Do what writes to a group; an OSError means that the backend is unusable."""
    try:
        work()
    except OSError as error:
        raise Unusable(f"cannot {what}: {error_text(error)}") from None


def stay_in(own: str, run_id: str, limits: Limits, delegated: bool) -> "Group2 | None":
    """A container in our own group, where it is ours to divide (its unit is `delegated` to us, or
    nobody else is in it): all that is in it moves to a leaf. None: it is not ours."""
    members = processes.read(own + "/cgroup.procs").split()
    if not delegated and members != [str(os.getpid()).encode()]:
        return None
    try:
        _check_writable(own)
    except Unusable:
        return None
    _drain(own, limits.controllers())
    return open_below(own, run_id, limits)


def open_below(parent: str, run_id: str, limits: Limits) -> "Group2":
    """A container in a group whose controllers are enabled. Raises Unusable."""
    # Not before: on a v1 host `auto` tries us first, and cgroupspy costs 2 ms.
    from sandrun.backends import cgroup2

    cgroup_common.collect(parent, cgroup2.end_stale)
    container = cgroup2.Group2(f"{parent}/{cgroup_common.PREFIX}{run_id}", limits)
    guarded(container.create, "make the run's group")
    return container


class Cgroup2Backend:
    """See `sandrun.backends.protocol.Backend`."""

    name: "BackendName" = "cgroup2"
    kernel = True

    def open(self, run_id: str, limits: Limits) -> "Group2":
        return open_below(find_parent(limits.controllers()), run_id, limits)

    def attach(self, run_id: str, token: str) -> "Group2":
        from sandrun.backends import cgroup2

        cgroup_common.check_ours(token, run_id, "")
        return cgroup2.Group2(token)

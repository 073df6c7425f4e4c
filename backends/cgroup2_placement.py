"""The backend `cgroup2`, and where in the v2 hierarchy a run's group may be made.

Every enclosing limit must apply to the run's group. The group is made
- as a sibling of an enclosing run's `main/`, or of a leaf that we made before;
- in our own group, if we are its only process and move to a leaf, or if it is the root of a
  container's cgroup namespace, whose processes all move to a leaf (a group cannot both have
  processes and enable controllers for its children: EBUSY);
- on a host without systemd, in the nearest group above without processes, if no group in between
  has a limit.
We do not use a group that systemd manages and that has other processes. There the backend `systemd`
requests a scope.
"""

import errno
import os
import sys
import time

assert sys.platform == "linux"

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
"""The leaf for the processes of a group that we use. `collect` ignores it: it is no run's name."""
_DELEGATE = (
    "as root: systemctl edit user@.service, add [Service] Delegate=cpu cpuset io memory pids, "
    "then log in again"
)
"""The hint if systemd does not delegate a controller."""
_DRAIN_SECONDS = 1.0
"""Seconds for which enabling controllers is retried after a group was drained."""


def find_parent(needed: "dict[str, bool]") -> str:
    """The group in which to make the run's group, with controllers enabled. Raises Unusable."""
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
    if os.path.ismount(own) or (alone and (_is_delegated(own) or enclosing_limit(own))):
        _check_writable(own)
        _drain(own, needed)
        return own
    if not os.path.isdir("/run/systemd/system"):
        return _free_group_above(own, needed)
    why = "is not delegated to us" if alone else "also holds other processes"
    raise Unusable(
        f"our own group {own} {why}, and systemd manages it",
        "give the run a scope: systemd-run --user --scope -p Delegate=yes sandrun ...",
    )


def is_ours(own: str) -> bool:
    """Whether the group is one that we make for processes: a run's `main`, or a leaf."""
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
"""The default values of the files that restrict or favour a group, except `*.max`
(Documentation/admin-guide/cgroup-v2.rst)."""


def limits_of(group: str) -> "dict[str, str]":
    """The limits and weights of the group itself that differ from the defaults, by file name."""
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
    # Such as `max`, `res_a max`, `hca_handle=max`. The second word of cpu.max is the period.
    words = value.replace("=", " ").split()[: 1 if name == "cpu.max" else None]
    return any(word[0].isdigit() for word in words)


def enclosing_limit(own: str) -> str:
    """A limit of our own group, or of a group between it and its slice, that would not apply to a
    run elsewhere in that slice; '' for none."""
    while not (own.endswith(".slice") or os.path.ismount(own)):
        for name, value in limits_of(own).items():
            # systemd sets a pids.max on every unit by default (TasksMax=15%).
            if name != "pids.max":
                return f"{name} = {value} of {own}"
        own = os.path.dirname(own)
    return ""


def _is_delegated(own: str) -> bool:
    """Whether the group's manager delegates it to us (systemd's CGROUP_DELEGATION.md). On a reload,
    systemd disables controllers in groups that it did not delegate."""
    if not os.path.isdir("/run/systemd/system"):
        return True  # no manager
    if os.path.basename(own).startswith(cgroup_common.PREFIX):
        return True  # a scope that the backend `systemd` requested
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
        raise Unusable(f"our own group {own} is {kind}: it cannot have a memory limit")


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
    """Move every process of `own` into a leaf, so that `own` can enable controllers."""
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
    or_unusable(move_all, f"move the processes of {own} to a leaf")
    # EBUSY: a container runtime added a process to `own` meanwhile.
    enable(own, needed, _DRAIN_SECONDS)


def _move(pid: bytes, group: str) -> None:
    fd = os.open(group + "/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, pid)
    except ProcessLookupError:
        pass
    finally:
        os.close(fd)


def _free_group_above(own: str, needed: "dict[str, bool]") -> str:
    """The nearest group above `own` without processes. Raises Unusable if a limit in between would
    not apply to a run there."""
    here = own
    while not os.path.ismount(here):
        limit = enclosing_limit(here)
        if limit:
            raise Unusable(f"a run outside {own} would escape {limit}")
        here = os.path.dirname(here)
        members = processes.read(here + "/cgroup.procs").split()
        if not members or not os.path.exists(here + "/cgroup.type"):
            _check_writable(here)
            enable(here, needed)
            return here
    raise Unusable(f"no group above {own} is free of processes")


def enable(parent: str, needed: "dict[str, bool]", retry_seconds: float = 0.0) -> None:
    """Enable controllers for the children of `parent`; `needed` has for each whether it is
    required.

    Raises Unusable. EBUSY is retried for `retry_seconds`.
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
        _enable_one(parent, name, must, time.monotonic() + retry_seconds)


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
    """The hint that tells how to get controllers from systemd; '' on a host without it."""
    return _DELEGATE if os.path.isdir("/run/systemd/system") else ""


def or_unusable(work: "Callable[[], None]", what: str) -> None:
    """Call `work`, which writes to a group; raise Unusable for an OSError."""
    try:
        work()
    except OSError as error:
        raise Unusable(f"cannot {what}: {error_text(error)}") from None


def stay_in(own: str, run_id: str, limits: Limits, delegated: bool) -> "Group2 | None":
    """A container in our own group, whose processes all move to a leaf. None: the group is not
    ours, because its unit is not `delegated` to us and it holds other processes."""
    members = processes.read(own + "/cgroup.procs").split()
    if not delegated and members != [str(os.getpid()).encode()]:
        return None
    try:
        _check_writable(own)
    except Unusable:
        return None
    _drain(own, limits.controllers())
    return open_below(own, run_id, limits)


def open_below(
    parent: str,
    run_id: str,
    limits: Limits,
    make: "Callable[[str, Limits], Group2] | None" = None,
) -> "Group2":
    """Make a container in the group `parent`, whose controllers are enabled. `make` constructs it;
    by default it is a Group2. Raises Unusable."""
    # Imported here because cgroupspy costs 2 ms and `open` may be refused before.
    from sandrun.backends import cgroup2

    cgroup_common.collect(parent, cgroup2.end_stale)
    container = (make or cgroup2.Group2)(f"{parent}/{cgroup_common.PREFIX}{run_id}", limits)
    or_unusable(container.create, "make the run's group")
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

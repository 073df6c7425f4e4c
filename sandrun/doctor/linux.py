"""The checks of `sandrun doctor` that only Linux needs."""

import os
import sys

from sandrun.backends import cgroup2_placement, cgroup_common
from sandrun.doctor.report import CAUTION, FAIL, PASS, UNUSED, Check
from sandrun.lifecycle import namespaces
from sandrun.model import Unusable
from sandrun.platform import processes

assert sys.platform == "linux"

_V2_FEATURES = (
    ("memory.peak", "5.19", "the peak is sampled"),
    ("cgroup.kill", "5.14", "processes are frozen and killed one by one"),
    ("memory.pressure", "4.20 with PSI", "the time that a run waits for memory is unknown"),
)
_WANTED = ("memory", "pids", "cpu", "io")


def hierarchy() -> Check:
    """Which cgroup hierarchies are mounted, and which of their controllers we may use."""
    v1 = [name for name in ("memory", "pids", "cpu", "blkio", "freezer") if _is_v1(name)]
    try:
        own = cgroup_common.own_group("")
    except Unusable as error:
        if v1:
            return Check("cgroups", PASS, f"v1: {' '.join(v1)}")
        return Check("cgroups", FAIL, error.text, error.hint)
    inside = cgroup2_placement.is_ours(own)
    if inside:  # a run that starts in a run's or a leaf's group gets a group beside it
        own = os.path.dirname(own)
    available = processes.read(own + "/cgroup.controllers").decode().split()
    if "memory" in v1:
        return Check(
            "cgroups", PASS, f"hybrid: v1 has {' '.join(v1)}; v2 {' '.join(available) or 'none'}"
        )
    missing = [name for name in _WANTED if name not in available]
    text = f"v2: {own}: {' '.join(available) or 'no controllers'}"
    if not missing:
        return Check("cgroups", PASS, text)
    text += f"; not {'available to runs inside this run' if inside else 'delegated to us'}: "
    text += " ".join(missing)
    status = FAIL if "memory" in missing else CAUTION
    return Check("cgroups", status, text, "" if inside else cgroup2_placement.delegation_hint())


def _is_v1(controller: str) -> bool:
    try:
        cgroup_common.own_mount(controller)
        return True
    except Unusable:
        return False


def features() -> "list[Check]":
    """What this kernel's cgroup v2 lacks, and how sandrun does without it."""
    try:
        mount = cgroup_common.own_mount("")
    except Unusable:
        return []
    # The root group has no limit files; its children have them.
    samples = [entry.path for entry in os.scandir(mount) if entry.is_dir()]
    has = {name for path in samples for name in os.listdir(path)}
    if "memory.max" not in has:
        return []
    lacks = [
        f"no {name} (Linux {since}): {so}" for name, since, so in _V2_FEATURES if name not in has
    ]
    return [
        Check("kernel", CAUTION if lacks else PASS, "; ".join(lacks) or "has all that sandrun uses")
    ]


def without_slice() -> str:
    """What follows if the scope that a run made for this process is in no slice of the run's own;
    '' if it is in one."""
    from sandrun.backends import systemd_slice

    scope = os.path.dirname(cgroup_common.own_group(""))
    lost = "; no slice of the run's own: panes of tmux and the like leave the container"
    return "" if systemd_slice.slice_of(scope) else lost


def logout(probes: "list[Check]") -> "list[Check]":
    """Whether the user's manager, which holds the runs, ends at the last logout."""
    if os.geteuid() == 0 or ("systemd", PASS) not in [(c.name, c.status) for c in probes]:
        return []
    from sandrun.backends import systemd_units

    user = systemd_units.user_name()
    if systemd_units.lingers():
        return [Check("logout", PASS, f"the manager of {user} goes on after the last logout")]
    text = (
        f"the manager of {user} ends at the last logout: under nohup, with --detach and in "
        "system services, no kernel enforces the limits"
    )
    return [Check("logout", CAUTION, text, systemd_units.linger_hint())]


def prctl() -> Check:
    """Which library makes the calls of prctl(2) that `_ctypes` does not make."""
    from sandrun.platform import linux_syscalls

    provider = linux_syscalls.prctl_provider()
    text = f"{provider} for the parent-death signal; for the subreaper _ctypes, else {provider}"
    hint = "" if provider == "python-prctl" else "apt install python3-prctl"
    return Check("prctl", PASS, text, hint)


def private() -> Check:
    """Whether a run can have its own /tmp and IPC."""
    refused = namespaces.attempt(namespaces.Plan(["/dev/shm", "/tmp"], set(), "/", True))
    if refused is None:
        return Check("private", PASS, "runs can have their own /tmp and IPC")
    return Check("private", UNUSED, f"{refused.text} (--private-tmp, --private-ipc)", refused.hint)

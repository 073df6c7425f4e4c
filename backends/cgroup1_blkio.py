"""Disk limits and weights of cgroup v1 (Documentation/admin-guide/cgroup-v1/blkio-controller.rst).

Imported only by a run that asks for them.
"""

import os
import sys

assert sys.platform == "linux"

from sandrun import messages
from sandrun.backends import cgroup_files
from sandrun.backends.cgroup_files import Controller, Node
from sandrun.model import Limits, Unusable

_FILES = {
    "rbps": "read_bps_device",
    "wbps": "write_bps_device",
    "riops": "read_iops_device",
    "wiops": "write_iops_device",
}
"""The throttle files by the keys of `Limits.io`, which are those of v2's io.max."""


def limit(path: str, limits: Limits) -> None:
    """Set the limits and the weight in the blkio group `path`.

    Raises OSError, and Unusable when the kernel did not accept a value or has no weights.
    """
    if limits.io:
        device = cgroup_files.disk_of(limits.directory)
        for key, value in limits.io.items():
            _set(path, f"blkio.throttle.{_FILES[key]}", f"{device} {value}")
    if limits.io_weight > 0:
        # BFQ and CFQ accept 10 to 1000; 100 is the default.
        scaled = str(min(1000, max(10, limits.io_weight)))
        for name in ("blkio.weight", "blkio.bfq.weight"):
            if os.path.exists(f"{path}/{name}"):
                _set(path, name, scaled)
                return
        raise Unusable("io-weight: this kernel's blkio controller has no weights")


def _set(path: str, name: str, value: str) -> None:
    # Not cgroupspy's BlkIOController: it names two of these files with a trailing blank.
    control = Controller(Node(path))
    messages.detail(f"{path}/{name} = {value}")
    control.set_property(name.encode(), value)
    accepted = control.get_property(name.encode())
    if value not in accepted.split("\n"):  # one line per disk
        raise Unusable(f"{name}: set to {value!r}, the kernel stored {accepted!r}")

"""The mechanisms that enforce limits on a process tree, one file each.

Promises to open the first one that works here, in the order of what they can enforce. `choose`
tries instead of asking first: an attempt costs less than a check and cannot be out of date. (One
read of /proc/self/cgroup rules two of them out.) Imports messages, platform and model; knows no
settings.
"""

import os
import sys

from sandrun import messages
from sandrun.model import DARWIN, SandrunError, Unusable, error_text, out_of_descriptors

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sandrun.backends.protocol import Backend, Container
    from sandrun.model import Limits
    from sandrun.types import BackendName

ORDER: "tuple[str, ...]" = ("rlimit",) if DARWIN else ("cgroup2", "systemd", "cgroup1", "rlimit")
"""The candidates of `auto`, best first."""
_OF_V2 = ("cgroup2", "systemd")
if sys.platform == "win32":
    ORDER = ("job-object",)


def named(name: str) -> "Backend":
    """The backend of that name. Raises Unusable for one of another system, or of no version that
    we know: what that would hold, or end, nobody here can tell."""
    if (name == "job-object") != (sys.platform == "win32") and name != "none":
        raise Unusable(f"there is no {name} on this system")
    if name == "none":
        from sandrun.backends import none

        return none.NoBackend()
    if sys.platform == "win32":
        from sandrun.backends import job_object

        return job_object.JobBackend()
    if DARWIN:
        if name != "rlimit":
            raise Unusable(f"there is no {name} on this system")
        from sandrun.backends import rlimit_macos

        return rlimit_macos.DarwinBackend()
    if name == "cgroup2":
        from sandrun.backends import cgroup2_placement

        return cgroup2_placement.Cgroup2Backend()
    if name == "systemd":
        from sandrun.backends import systemd

        return systemd.SystemdBackend()
    if name == "cgroup1":
        from sandrun.backends import cgroup1

        return cgroup1.Cgroup1Backend()
    if name != "rlimit":
        raise Unusable(f"this version has no backend {name}")
    from sandrun.backends import rlimit

    return rlimit.RlimitBackend()


def choose(
    wish: "BackendName", run_id: str, limits: "Limits", kernel_only: bool
) -> "tuple[Backend, Container, list[str]]":
    """Open a container for a run; also why better backends were passed over (`name: reason`).

    Raises SandrunError when the backend asked for, or every one, cannot be used.
    """
    refused: list[tuple[str, str, str]] = []
    notable: list[tuple[str, str]] = []
    of_v1 = wish == "auto" and _memory_is_of_v1()
    for name in ORDER if wish == "auto" else (wish,):
        try:
            if of_v1 and name in _OF_V2:
                raise Unusable("the memory controller is one of cgroup v1 here")
            backend = named(name)
            if kernel_only and not backend.kernel:
                raise Unusable("not a kernel's container, and --require kernel")
            container = backend.open(run_id, limits)
            for text, hint in [] if backend.kernel else notable:
                messages.warn(f"no kernel enforces the limits: {text}", hint)
            return backend, container, [f"{n}: {text}" for n, text, _ in refused]
        except (Unusable, OSError) as error:
            lack = out_of_descriptors(error)
            if lack:  # of descriptors: a worse backend must not be taken for that
                raise lack from None
            if isinstance(error, Unusable):
                refused.append((name, error.text, error.hint))
                notable += [(error.text, error.hint)] if error.notable else []
            else:  # files that every such host has, but not this one
                refused.append((name, error_text(error), ""))
        except ImportError as error:
            refused.append((name, f"{error.name} is missing", f"pip install {error.name}"))
    raise NoBackend(refused)


def _memory_is_of_v1() -> bool:
    """Whether a v1 hierarchy has the memory controller (cgroups(7)), so that no group of v2 can."""
    if sys.platform == "win32":
        return False
    try:
        fd = os.open("/proc/self/cgroup", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    lines = os.read(fd, 1 << 16).split(b"\n")
    os.close(fd)
    return any(b"memory" in line.split(b":")[1].split(b",") for line in lines if line)


class NoBackend(SandrunError):
    """No backend can contain the run. `refused`: name, reason and hint of each that was tried."""

    def __init__(self, refused: "list[tuple[str, str, str]]") -> None:
        hints = [hint for _, _, hint in refused if hint]
        super().__init__(
            "no backend can contain the run: "
            + "; ".join(f"{n}: {text}" for n, text, _ in refused),
            hints[-1]
            if hints
            else "sandrun doctor shows what is missing; --backend none runs without limits",
        )
        self.refused = refused

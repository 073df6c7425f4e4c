"""The mechanisms that enforce limits on a process tree, one file each.

Promises that `choose` opens the first one that works here, in the order of what they can enforce.
It makes the container without checking first whether it can: a check costs more and may be out of
date. (One read of /proc/self/cgroup rules two of them out on v1 hosts.) Imports messages, platform
and model; knows no settings.
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
_V2_BACKENDS = ("cgroup2", "systemd")
_EARLY = ("cgroup2", "cgroup1")
"""The backends whose container a waiting run opens early: it is a group without processes. systemd
would list a scope as running, and the other backends have nothing to open."""
if sys.platform == "win32":
    ORDER = ("job-object",)


def named(name: str) -> "Backend":
    """The backend of that name. Raises Unusable for a backend of another system, and for an unknown
    name, such as one that another version recorded."""
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


def import_probable(requested: "BackendName") -> None:
    """Import the backend that `choose` will probably open. Errors are left to `choose`."""
    probable = "cgroup1" if _is_memory_on_v1() else ORDER[0]
    try:
        named(probable if requested == "auto" else requested)
    except (Unusable, ImportError):
        pass


def choose(
    requested: "BackendName", run_id: str, limits: "Limits", kernel_only: bool, early: bool = False
) -> "tuple[Backend, Container, list[str]]":
    """Open a container for a run. Return also why better backends were not used (`name: reason`).

    `early`: the run still waits. Raises SandrunError if the requested backend, or each candidate of
    `auto`, cannot be used; with `early` also if the next candidate is not one of `_EARLY`.
    """
    refused: list[tuple[str, str, str]] = []
    notable: list[tuple[str, str]] = []
    memory_is_v1 = requested == "auto" and _is_memory_on_v1()
    for name in ORDER if requested == "auto" else (requested,):
        try:
            if memory_is_v1 and name in _V2_BACKENDS:
                raise Unusable("the memory controller is on cgroup v1 here")
            if early and name not in _EARLY:
                break
            backend = named(name)
            if kernel_only and not backend.kernel:
                raise Unusable("the kernel does not enforce its limits (--require kernel)")
            container = backend.open(run_id, limits)
            for text, hint in [] if backend.kernel else notable:
                messages.warn(f"no kernel enforces the limits: {text}", hint)
            return backend, container, [f"{n}: {text}" for n, text, _ in refused]
        except (Unusable, OSError) as error:
            exhausted = out_of_descriptors(error)
            if exhausted:  # no reason to use a worse backend
                raise exhausted from None
            if isinstance(error, Unusable):
                refused.append((name, error.text, error.hint))
                notable += [(error.text, error.hint)] if error.notable else []
            else:  # a control file is missing here that hosts with this backend usually have
                refused.append((name, error_text(error), ""))
        except ImportError as error:
            refused.append((name, f"{error.name} is missing", f"pip install {error.name}"))
    raise NoUsableBackend(refused)


def own_cgroups() -> bytes:
    """The cgroups that contain us, as /proc/self/cgroup lists them; b"" if it does not exist."""
    if sys.platform == "win32":
        return b""
    try:
        fd = os.open("/proc/self/cgroup", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    lines = os.read(fd, 1 << 16)
    os.close(fd)
    return lines


def is_usable(container: "Container", opened_in: bytes) -> bool:
    """Whether a container that was opened early, when `own_cgroups` was `opened_in`, can still be
    used: its groups exist, and we were not moved, so every limit that encloses us encloses them."""
    paths = [line[line.find("/") :] for line in container.token.split("\n")]
    return own_cgroups() == opened_in and all(map(os.path.isdir, paths))


def _is_memory_on_v1() -> bool:
    """Whether a v1 hierarchy has the memory controller; then no v2 group has it (cgroups(7))."""
    lines = own_cgroups().split(b"\n")
    return any(b"memory" in line.split(b":")[1].split(b",") for line in lines if line)


class NoUsableBackend(SandrunError):
    """No backend can contain the run. `refused`: name, reason and hint of each backend tried."""

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

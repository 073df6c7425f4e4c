"""The mechanisms that enforce limits on a process tree, one file each.

`choose` opens the first that works here, in the order of what they can promise. It tries instead
of asking first: an attempt costs less than a check and cannot be out of date.
"""

from sandrun.model import SandrunError, Unusable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sandrun.model import Limits
    from sandrun.protocol import Backend, Container

ORDER = ("cgroup2", "systemd", "cgroup1", "rlimit")
"""The candidates of `auto`, best first."""


def named(name: str) -> "Backend":
    """The backend of that name."""
    if name == "none":
        from sandrun.backends import none

        return none.NoBackend()
    if name == "cgroup2":
        from sandrun.backends import cgroup2

        return cgroup2.Cgroup2Backend()
    if name == "systemd":
        from sandrun.backends import systemd

        return systemd.SystemdBackend()
    if name == "cgroup1":
        from sandrun.backends import cgroup1

        return cgroup1.Cgroup1Backend()
    from sandrun.backends import rlimit

    return rlimit.RlimitBackend()


def choose(
    wish: str, run_id: str, limits: "Limits", kernel_only: bool
) -> "tuple[Backend, Container, list[str]]":
    """Open a container for a run; also why better backends were passed over (`name: reason`).

    Raises SandrunError when the backend asked for, or every one, cannot be used.
    """
    refused: list[str] = []
    hint = ""
    for name in ORDER if wish == "auto" else (wish,):
        backend = named(name)
        if kernel_only and not backend.kernel:
            refused.append(f"{name}: not a kernel's container, and --require kernel")
            continue
        try:
            return backend, backend.open(run_id, limits), refused
        except Unusable as error:
            refused.append(f"{name}: {error.text}")
            hint = hint or error.hint
    raise SandrunError(
        "no backend can contain the run: " + "; ".join(refused),
        hint or "sandrun doctor shows what is missing; --backend none runs without limits",
    )

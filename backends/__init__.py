"""The mechanisms that enforce limits on a process tree, one file each.

`choose` opens the first that works here, in the order of what they can promise. It tries instead
of asking first: an attempt costs less than a check and cannot be out of date.
"""

from sandrun.model import SandrunError, Unusable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sandrun.model import Limits
    from sandrun.protocol import Backend, Container

ORDER = ("cgroup1", "rlimit")
"""The candidates of `auto`, best first."""


def named(name: str) -> "Backend":
    """The backend of that name."""
    if name == "none":
        from sandrun.backends import none

        return none.NoBackend()
    if name == "cgroup1":
        from sandrun.backends import cgroup1

        return cgroup1.Cgroup1Backend()
    from sandrun.backends import rlimit

    return rlimit.RlimitBackend()


def choose(wish: str, run_id: str, limits: "Limits") -> "tuple[Backend, Container, list[str]]":
    """Open a container for a run; also why better backends were passed over (`name: reason`).

    Raises SandrunError when the backend asked for, or every one, cannot be used.
    """
    refused: list[str] = []
    for name in ORDER if wish == "auto" else (wish,):
        backend = named(name)
        try:
            return backend, backend.open(run_id, limits), refused
        except Unusable as error:
            refused.append(f"{name}: {error.text}")
            hint = error.hint
    raise SandrunError(
        "no backend can contain the run: " + "; ".join(refused),
        hint or "run it without limits: --backend none",
    )

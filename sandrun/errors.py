"""Why a waiter leaves the queue without its turn; the same on every system."""

from sandrun.model import EXIT_GAVE_UP, SandrunError, command_text


class Left(Exception):
    """A signal, or what is one elsewhere, told the waiter to go; or, if it did not wait (`waited`),
    the run to end before its command was started."""

    def __init__(self, signum: int, waited: bool = True) -> None:
        super().__init__(signum)
        self.signum = signum
        self.waited = waited


class GaveUp(SandrunError):
    """Not our turn, and the user would not wait (longer); `keep`: the place is kept."""

    keep = True


def gave_up(text: str, queue: str) -> GaveUp:
    """`queue`: the name of the one that was left, or ''."""
    return GaveUp(text, f"see who runs with: {look_at('status', queue)}", EXIT_GAVE_UP)


def look_at(subcommand: str, queue: str) -> str:
    """The line with which a subcommand of ours is said of the queue that is meant."""
    return command_text(["sandrun", subcommand, *(["--queue", queue] if queue else [])])


def cancelled() -> GaveUp:
    error = GaveUp("taken out of the queue by sandrun queue cancel", "", EXIT_GAVE_UP)
    error.keep = False
    return error

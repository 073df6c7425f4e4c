"""Why a waiter leaves the queue without its turn; the same on every system."""

from sandrun.model import EXIT_GAVE_UP, SandrunError


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


def gave_up(text: str) -> GaveUp:
    return GaveUp(text, "see who runs with: sandrun status", EXIT_GAVE_UP)


def cancelled() -> GaveUp:
    error = GaveUp("taken out of the queue by sandrun queue cancel", "", EXIT_GAVE_UP)
    error.keep = False
    return error

"""Why a run leaves the queue before its turn; the same on every system."""

from sandrun.model import EXIT_GAVE_UP, SandrunError, command_text


class Interrupted(Exception):
    """A signal, or its counterpart on Windows, ended the run before its command started. `waited`:
    it ended a wait; else it arrived after the wait."""

    def __init__(self, signum: int, waited: bool = True) -> None:
        super().__init__(signum)
        self.signum = signum
        self.waited = waited


class GaveUp(SandrunError):
    """The run did not get its turn within the wait that the user allows. `keep`: its place in the
    queue is kept for the next attempt."""

    keep = True


def gave_up(text: str, queue: str) -> GaveUp:
    """The error for a run whose allowed wait is over. `queue`: the queue's name, '' for none."""
    return GaveUp(text, f"see who runs with: {command_for('status', queue)}", EXIT_GAVE_UP)


def command_for(subcommand: str, queue: str) -> str:
    """The command line of one of our subcommands for the queue named `queue`."""
    return command_text(["sandrun", subcommand, *(["--queue", queue] if queue else [])])


def cancelled() -> GaveUp:
    """The error for a run whose ticket was removed by `sandrun queue cancel`."""
    error = GaveUp("removed from the queue by sandrun queue cancel", "", EXIT_GAVE_UP)
    error.keep = False
    return error

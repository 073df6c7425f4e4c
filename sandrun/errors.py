"""Why a run leaves the queue before its turn; the same on every system."""

from sandrun.model import EXIT_GAVE_UP, SandrunError, command_text


class Interrupted(Exception):
    """A signal, or its counterpart on Windows, ended the wait; or, if there was none (`waited`), it
    ends the run before the command was started."""

    def __init__(self, signum: int, waited: bool = True) -> None:
        super().__init__(signum)
        self.signum = signum
        self.waited = waited


class GaveUp(SandrunError):
    """It is not our turn, and the user allows no (longer) wait. `keep`: the ticket's place is kept
    for the next attempt."""

    keep = True


def gave_up(text: str, queue: str) -> GaveUp:
    """The error for a run that leaves the queue named `queue` ('': it has no name)."""
    return GaveUp(text, f"see who runs with: {command_for('status', queue)}", EXIT_GAVE_UP)


def command_for(subcommand: str, queue: str) -> str:
    """The command line of one of our subcommands for the queue named `queue`."""
    return command_text(["sandrun", subcommand, *(["--queue", queue] if queue else [])])


def cancelled() -> GaveUp:
    """The error for a run whose ticket was removed by `sandrun queue cancel`."""
    error = GaveUp("taken out of the queue by sandrun queue cancel", "", EXIT_GAVE_UP)
    error.keep = False
    return error

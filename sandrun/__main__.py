"""`python -m sandrun` is the command `sandrun`, and so is the entry point: see setup.py."""

import _signal
import gc


def start() -> None:
    """Do what bin/sandrun does, which says why."""
    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
    gc.set_threshold(50_000)
    from sandrun.cli import main

    main()


if __name__ == "__main__":
    start()

"""The command line: `main` takes the hot path to a run itself, and loads click for the rest.

Promises one clear line and a documented exit code for every mistake, never a traceback. Leaves the
work to the rooms below. Imports all of them.
"""

import errno
import os
import sys

from sandrun import messages
from sandrun.config import options, project, settings
from sandrun.model import EXIT_SANDRUN, SandrunError, UsageError, out_of_descriptors
from sandrun.platform import spawn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import NoReturn


_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.ENOSPC, errno.EDQUOT)


def main() -> "NoReturn":
    """Run the command line and exit; never returns and never shows a traceback.

    os._exit spares the interpreter's own tear-down, a tenth of the start-up; nothing is buffered,
    because messages are written with write(2).
    """
    caller = spawn.capture()
    try:
        _listen(os.environ)
        code = _main(sys.argv[1:], caller)
    except SandrunError as error:
        lack = out_of_descriptors(error)
        hint = messages.shortage_hint(lack.errno) if lack else error.hint
        messages.error(error.text, hint)
        code = error.exit_code
        for subscriber in messages.subscribers:
            subscriber.failed(error.text, hint, code)
    except BaseException as error:
        code = _surprise(error)
    # On Windows a code has 32 bits (an NTSTATUS), and C's int a sign.
    os._exit(code if code < 1 << 31 else code - (1 << 32))


def _listen(env: "Mapping[str, str]") -> None:
    """Find the programs that want to know: our caller from Python, a CI's log and summary."""
    if "SANDRUN_TELL" in env:
        from sandrun.integrations import notify

        notify.take()
    if ("GITHUB_ACTIONS" in env or "GITLAB_CI" in env) and "SANDRUN_RUNS" not in env:
        from sandrun.integrations import ci

        messages.subscribers.append(ci)


def _main(argv: "list[str]", caller: spawn.CallerState) -> int:
    parsed = options.parse(argv)
    if parsed.subcommand == "git":
        if sys.platform == "win32":
            from sandrun.git import windows as wrapper
        else:
            from sandrun.git import wrapper

        return wrapper.main(parsed.arguments, parsed.flags, caller)
    if parsed.subcommand == "make-again":
        from sandrun.integrations import make

        return make.main(parsed.flags, caller)
    if parsed.subcommand:
        from sandrun.cli import app

        return app.main(argv, caller)
    if not parsed.command:
        raise UsageError("no command given", "sandrun -- make test, or sandrun --help")

    def settle() -> "tuple[str, settings.Settings]":
        start = project.start(parsed.flags.get("project"))
        root = project.find(start)
        return root, settings.resolve(parsed.flags, root, start)

    root, chosen = spawn.interruptibly(caller, settle)
    from sandrun.lifecycle import runner

    outcome = runner.run(parsed.command, chosen, root, caller)
    if outcome.interrupted:  # a shell's loop goes on after an exit code, whatever it is
        spawn.die_of(outcome.signal)
    return outcome.code


def _surprise(error: BaseException) -> int:
    """An exception that nobody expected, or a waiter that was told to go."""
    signum = getattr(error, "signum", 0)
    if signum:
        if getattr(error, "waited", True):
            messages.status("left the queue")
        else:
            spawn.die_of(signum)
        return 128 + int(signum)
    if isinstance(error, KeyboardInterrupt):
        return 130
    if os.environ.get("SANDRUN_DEBUG"):
        import traceback

        traceback.print_exception(error)
    if isinstance(error, OSError) and error.errno in _EXHAUSTED:
        messages.error(f"the system refuses: {error.strerror}", messages.shortage_hint(error.errno))
        return EXIT_SANDRUN
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if missing and missing.partition(".")[0] != "sandrun":
        messages.error(
            f"the Python package {missing} is not there, which this command needs",
            "install sandrun anew, with what it depends on (pipx install, pip install)",
        )
        return EXIT_SANDRUN
    messages.error(
        f"internal error: {type(error).__name__}: {error}",
        "this is a bug; SANDRUN_DEBUG=1 shows where",
    )
    return EXIT_SANDRUN

"""The command line. `main` starts a run itself, and loads click for everything else.

Promises one clear line and a documented exit code for every mistake, never a traceback (unless
SANDRUN_DEBUG is set). Leaves the work to the rooms below. Imports all of them.
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
    from collections.abc import Callable, Mapping
    from types import ModuleType
    from typing import NoReturn

    from sandrun.model import Outcome
    from sandrun.types import Record


_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.ENOSPC, errno.EDQUOT)
_BY_FLAG = {flag: option for option in options.OPTIONS for flag in option.flags}
_HELP_FLAGS = ("-h", "--help", "--version")
_VERBATIM = ("git", "make-again")
"""Subcommands that parse all words after them themselves."""
_AT_A_LIMIT = ("memory", "outer-memory")
_REDEFINED = {"queue": ("-p", "--priority")}
"""Flags of a run that a subcommand has too, with its own meaning: `queue move --priority`."""


def main() -> "NoReturn":
    """Run the command line and exit. Never returns.

    os._exit skips the interpreter's tear-down, which takes a tenth of the start-up time. Nothing is
    lost in a buffer: messages are written with write(2), and `app` flushes standard output.
    """
    caller = spawn.capture()
    try:
        _subscribe(os.environ)
        code = _main(sys.argv[1:], caller)
    except SandrunError as error:
        lack = out_of_descriptors(error)
        hint = messages.shortage_hint(lack.errno) if lack else error.hint
        messages.error(error.text, hint)
        code = error.exit_code
        for subscriber in messages.subscribers:
            subscriber.failed(error.text, hint, code)
    except BaseException as error:
        code = _report_unexpected(error)
        why = "a signal ended the wait" if hasattr(error, "signum") else f"internal error: {error}"
        _end.failed(why, "", code)
    # On Windows an exit code has 32 bits (an NTSTATUS), but C's int is signed.
    os._exit(code if code < 1 << 31 else code - (1 << 32))


def _subscribe(env: "Mapping[str, str]") -> None:
    """Add the subscribers to run events that `env` names: a Python caller, a CI service."""
    if "SANDRUN_TELL" in env:
        from sandrun.integrations import notify

        notify.subscribe()
    _end.has_ci_page = ("GITHUB_ACTIONS" in env or "GITLAB_CI" in env) and "SANDRUN_RUNS" not in env
    messages.subscribers.append(_end)


def _main(argv: "list[str]", caller: spawn.CallerState) -> int:
    parsed = parse(argv)
    if "json_report" in parsed.flags and parsed.subcommand in ("", "make-again"):
        _end.report_to(str(parsed.flags["json_report"]))
    if parsed.subcommand == "git":
        if sys.platform == "win32":
            from sandrun.git import windows as wrapper
        else:
            from sandrun.git import wrapper

        return wrapper.main(parsed.arguments, parsed.flags, caller)
    if parsed.subcommand == "make-again":
        from sandrun.integrations import make

        return make.main(parsed.flags, caller, run)
    if parsed.subcommand:
        from sandrun.cli import app

        return app.main(argv, caller)
    if not parsed.command:
        raise UsageError("no command given", "sandrun -- make test, or sandrun --help")

    def settle() -> "tuple[str, settings.Settings]":
        start = project.start_directory(parsed.flags.get("project"))
        root = project.find(start)
        return root, settings.resolve(parsed.flags, root, start)

    root, chosen = spawn.interruptibly(caller, settle)
    outcome = run(parsed.command, chosen, root, caller)
    if outcome.interrupted:  # a shell ends its loop only for a death by signal, not for a code
        spawn.die_of(outcome.signal)
    return outcome.code


def run(
    command: "list[str]", chosen: settings.Settings, root: str, caller: spawn.CallerState
) -> "Outcome":
    """Run a command (`runner.run`), then make the reports of its end."""
    from sandrun.lifecycle import runner

    _end.prepare(chosen)
    try:
        return runner.run(command, chosen, root, caller)
    finally:
        _end.released()


class End:
    """Subscribes to run events, and reports the run's end: in the files `json_report` and
    `metrics_textfile` (paths, or ''), to a CI service, and with a message if it was a memory limit.

    The modules that do so (`sandrun.cli.run_end`) are imported after the run lock is released, and
    only if a report is wanted, so it delays neither this run nor the next one.
    """

    def __init__(self) -> None:
        self.run_id = ""
        self.record: Record | None = None
        self.has_ci_page = False
        self.json_report = self.metrics_textfile = self.pool = ""

    def report_to(self, file: str) -> None:
        """Set `json_report`. Raises UsageError if there can be no such regular file."""
        path = os.path.realpath(file)
        if not os.path.isdir(os.path.dirname(path)):
            raise UsageError(f"--json-report {file}: no such directory")
        if os.path.lexists(path) and not os.path.isfile(path):
            raise UsageError(f"--json-report {file}: not a regular file")
        self.json_report = path

    def prepare(self, chosen: settings.Settings) -> None:
        """Note the settings, and hold open the modules that are imported after the run."""
        self.metrics_textfile, self.pool = chosen.metrics_textfile, chosen.pool
        if self.is_wanted():
            # Only modules can be held open, so their packages are imported now.
            from sandrun import insight, integrations  # noqa: F401
            from sandrun.lifecycle import module_files

            module_files.hold(module_files.REPORTING)

    def is_wanted(self) -> bool:
        """Whether every end is reported."""
        return bool(self.has_ci_page or self.json_report or self.metrics_textfile)

    def queued(self, run_id: str) -> None:
        self.run_id = run_id

    def ended(self, record: "Record") -> None:
        self.record = record

    def released(self) -> None:
        """Report the run, if it is recorded. Called when the run lock is free."""
        record = self.record
        if record and (self.is_wanted() or record["reason"] in _AT_A_LIMIT):
            self._report(lambda: _run_end().report(self, record))

    def _report(self, step: "Callable[[], None]") -> None:
        """Make a report. A failure, such as an import after the command removed the package, does
        not change the exit code."""
        try:
            step()
        except Exception as error:
            write = messages.warn if self.is_wanted() else messages.decision
            write(f"cannot report the end of the run: {type(error).__name__}: {error}")

    def failed(self, text: str, hint: str, code: int) -> None:
        """Report the end of a run that left no record."""
        if not self.record and (self.has_ci_page or self.json_report):
            self._report(lambda: _run_end().failed(self, text, hint, code))


def _run_end() -> "ModuleType":
    from sandrun.cli import run_end

    return run_end


_end = End()


def _report_unexpected(error: BaseException) -> int:
    """Report an unexpected exception, or the signal that ended the wait. Returns the exit code."""
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
            f"this command needs the Python package {missing}, which is missing",
            "install sandrun again, with its dependencies (pipx install, pip install)",
        )
        return EXIT_SANDRUN
    messages.error(
        f"internal error: {type(error).__name__}: {error}",
        "this is a bug; SANDRUN_DEBUG=1 shows where",
    )
    return EXIT_SANDRUN


class Parsed:
    """A parsed command line: `flags` by key, and either a `command` or a `subcommand`.

    `subcommand` is '' for a run, otherwise its name or `--help` / `--version`. `arguments` are the
    words after it, without the options of a run among them. `ordered` is the whole line with these
    options before the subcommand, where click expects them.
    """

    __slots__ = ("arguments", "command", "flags", "ordered", "subcommand")

    def __init__(self, argv: "list[str]") -> None:
        self.ordered = argv
        self.flags: dict[str, object] = {}
        self.command: list[str] = []
        self.subcommand = ""
        self.arguments: list[str] = []


def parse(argv: "list[str]") -> Parsed:
    """Parse `argv` (without the program's name). Raises UsageError.

    Options end at `--` or at the first word that is no option. That word starts the command,
    unless it is a subcommand without `--` before it. Options may also follow a subcommand.

    This parser exists because importing click costs more than all else that `sandrun -- true` does.
    A test runs one corpus of command lines through both.
    """
    parsed = Parsed(argv)
    at = 0
    while at < len(argv):
        word = argv[at]
        at += 1
        if word == "--":
            parsed.command = argv[at:]
            break
        if word in _HELP_FLAGS:
            parsed.subcommand = "--help" if word == "-h" else word
            break
        if word[:1] != "-" or word == "-":
            if word in options.SUBCOMMANDS:
                parsed.subcommand = word
                parsed.arguments = argv[at:]
                if word not in _VERBATIM:
                    _separate_options(parsed, argv[: at - 1])
            else:
                parsed.command = argv[at - 1 :]
            break
        at = _parse_option(parsed.flags, word, argv, at)
    return parsed


def _separate_options(parsed: Parsed, before: "list[str]") -> None:
    """Separate the options of a run from a subcommand's words; `before` are the words before it."""
    words = parsed.arguments
    later: list[str] = []
    rest: list[str] = []
    own = _REDEFINED.get(parsed.subcommand, ())
    at = 0
    while at < len(words) and words[at] != "--":
        names, has_value, _ = _names(words[at]) if words[at][:1] == "-" else ([], "", "")
        last = _BY_FLAG.get(names[-1]) if names else None
        end = at + (2 if last and last.kind != "count" and not has_value else 1)
        if not names or names[0] not in _BY_FLAG or names[0] in own:
            rest += words[at:end]
        else:
            _parse_option(parsed.flags, words[at], words, at + 1)
            later += words[at:end]
        at = end
    parsed.arguments = rest + words[at:]
    parsed.ordered = [*before, *later, parsed.subcommand, *parsed.arguments]


def _parse_option(flags: "dict[str, object]", word: str, argv: "list[str]", at: int) -> int:
    """Parse one word of options, and its value in `argv[at]` if it needs one. Returns the index of
    the next word."""
    names, has_value, text = _names(word)
    for name in names:
        option = _BY_FLAG.get(name)
        if option is None:
            raise UsageError(
                f"no such option: {name}",
                options.did_you_mean(name, [*_BY_FLAG, *_HELP_FLAGS])
                or "options of the command itself go after it, or after --; see sandrun --help",
            )
        if option.kind == "count":
            if has_value and name == names[-1]:  # the value belongs to the last flag of a bundle
                raise UsageError(f"option {name} takes no value")
            flags[option.key] = int(str(flags.get(option.key, 0))) + 1
            continue
        if not has_value:
            if at >= len(argv):
                raise UsageError(f"option {name} needs a value: {option.expected()}")
            text = argv[at]
            at += 1
        try:
            flags[option.key] = option.convert(text)
        except ValueError as error:
            raise UsageError(f"{name} {text!r}: expected {error}") from None
    return at


def _names(word: str) -> "tuple[list[str], str, str]":
    """The flags of a word that starts with a dash, `=` if it contains a value, and that value."""
    if word.startswith("--"):
        name, has_value, text = word.partition("=")
        return [name], has_value, text
    return _unbundle(word)


def _unbundle(word: str) -> "tuple[list[str], str, str]":
    """`-vv` is two flags, `-m4G` a flag with its value, `-vm4G` both."""
    names = []
    for index, letter in enumerate(word[1:], 2):
        names.append("-" + letter)
        option = _BY_FLAG.get("-" + letter)
        if option is None or option.kind != "count":
            return names, word[index:] and "=", word[index:]
    return names, "", ""

"""Programs other than git that take git's locks and have a shim of the guard: jj and git-annex.

Both report another git's lock as an error of the repository (jj 0.46: also `jj log` and `jj
status`, because they import git's changes and refresh the index). git-annex exits with 0 although
nothing was added or committed (10.20230126: `add`, `sync`).

Their command lines are classified as `git jj ...` and `git annex ...` (`classify`). A command that
is not listed here needs a turn, because the guard does not know what it writes.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

WORDS = {"jj": "jj", "git-annex": "annex"}
"""By program: the word that represents it in a git command line."""

_HARMLESS: "Mapping[str, frozenset[str]]" = {
    "jj": frozenset(("config", "help", "util", "version")),  # jj help, 0.46
    # git-annex(1): reports; transfers, which take hours; servers, whose children are classified one
    # by one; and commands that git itself starts.
    "git-annex": frozenset((
        "assistant", "benchmark", "calckey", "checkpresentkey", "contentlocation", "copy",
        "diffdriver", "drop", "examinekey", "filter-process", "find", "findkeys", "findref", "fsck",
        "fuzztest", "get", "help", "info", "inprogress", "list", "log", "lookupkey", "map",
        "matchexpression", "mirror", "move", "multicast", "p2phttp", "p2pstdio", "post-receive",
        "pre-commit", "proxy", "readpresentkey", "remotedaemon", "smudge", "status", "test",
        "testremote", "transferkey", "transferkeys", "transferrer", "unused", "version", "watch",
        "webapp", "whereis", "whereused",
    )),
}  # fmt: skip

_JJ_VALUES = ("-R", "--repository", "--at-op", "--at-operation", "--color", "--config",
              "--config-file")  # fmt: skip
_JJ_SHOWS = frozenset(("diff", "evolog", "interdiff", "log", "root", "show", "st", "status"))


def directory(tool: str, arguments: "list[str]") -> str:
    """The directory that the command line changes to; '': none."""
    return _jj_word(arguments)[1] if tool == "jj" else ""


def passed_words(tool: str) -> "list[str]":
    """The first words that need no turn, for a shim."""
    return sorted(_HARMLESS[tool])


def is_harmless(tool: str, arguments: "list[str]") -> bool:
    """Whether a command takes none of git's locks, or must not take a turn."""
    if not {"-h", "--help", "-V", "--version"}.isdisjoint(arguments[:1]):
        return True
    word = _jj_word(arguments)[0] if tool == "jj" else "".join(arguments[:1])
    if tool == "jj" and "--ignore-working-copy" in arguments and word in _JJ_SHOWS:
        return True  # as in a shell prompt: it neither imports nor refreshes
    return word in _HARMLESS[tool]


def is_paged(tool: str, arguments: "list[str]") -> bool:
    """Whether a command uses a pager on a terminal, and so may live as long as it is read."""
    return tool == "jj" and _jj_word(arguments)[0] in ("", *_JJ_SHOWS)


def _jj_word(arguments: "list[str]") -> "tuple[str, str]":
    """The subcommand of a jj command line ('': its default command), and the directory given by -R
    ('': none)."""
    directory = value_of = ""
    for argument in arguments:
        name, _, value = argument.partition("=")
        if value_of:
            name, value = value_of, argument
        elif argument[:2] == "-R" != argument:
            name, value = "-R", argument[2:].removeprefix("=")
        elif argument in _JJ_VALUES:
            value_of = argument
            continue
        elif argument[:1] != "-":
            return argument, directory
        value_of = ""
        if name in ("-R", "--repository"):
            directory = value
    return "", directory

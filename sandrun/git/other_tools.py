"""Programs other than git that take git's locks, and have a shim of the guard's: jj and git-annex.

Both report a lock that another git holds as an error of the repository (jj 0.46: `jj log` and
`jj status` too, because they import what git did and refresh the index), and git-annex ends with
exit code 0 although nothing was added or committed (10.20230126: `add`, `sync`).

Their command lines are classified as `git jj ...` and `git annex ...` (`commands`). A command that
is not listed here takes its turn, because the guard cannot know what it writes.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from sandrun.git.classify import Invocation

WORDS = {"jj": "jj", "git-annex": "annex"}
"""By program: the word that stands for it in a command line of git."""

_HARMLESS: "Mapping[str, frozenset[str]]" = {
    "jj": frozenset(("config", "help", "util", "version")),  # jj help, 0.46
    # git-annex(1): what only reports; transfers, which take hours; servers, whose children come
    # here one by one; and what git itself starts.
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


def parse(tool: str, arguments: "list[str]") -> "Invocation":
    """The command line as the one of git that stands for it."""
    from sandrun.git.classify import Invocation

    taken = Invocation()
    taken.word, taken.arguments = WORDS[tool], arguments
    directory = _jj_word(arguments)[1] if tool == "jj" else ""
    taken.directories = [directory] if directory else []
    return taken


def passed_words(tool: str) -> "list[str]":
    """The first words that need no turn, for a shim that asks nobody."""
    return sorted(_HARMLESS[tool])


def is_harmless(tool: str, arguments: "list[str]") -> bool:
    """Whether a command takes none of git's locks, or must not take a turn."""
    if not {"-h", "--help", "-V", "--version"}.isdisjoint(arguments[:1]):
        return True
    word = _jj_word(arguments)[0] if tool == "jj" else "".join(arguments[:1])
    if tool == "jj" and "--ignore-working-copy" in arguments and word in _JJ_SHOWS:
        return True  # a prompt asks so: neither imported nor refreshed
    return word in _HARMLESS[tool]


def is_paged(tool: str, arguments: "list[str]") -> bool:
    """Whether a command shows its answer in a pager where it has a terminal, and lives as long as
    somebody reads."""
    return tool == "jj" and _jj_word(arguments)[0] in ("", *_JJ_SHOWS)


def _jj_word(arguments: "list[str]") -> "tuple[str, str]":
    """The subcommand of a command line of jj ('': its default command), and the directory that -R
    names ('': none)."""
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

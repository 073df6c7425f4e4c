"""Classify a git command line: its global options, its subcommand, and the locks that it needs.

Promises that a command classified as read-only takes no lock of git's on which another command
would fail. An uncertain command needs TREE, REFS and REMOTE. Objects are named by their content and
written without locks, so commands that write only objects need none.

Two more kinds need none although they may write: servers and windows that live for hours (their
children are classified one by one), and commands that create a repository.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

TREE, REFS, REMOTE, ALL = 1, 2, 4, 8
"""The locks of a command, as bits. TREE: this worktree's index, HEAD and files. REFS: the config,
packed-refs and refs that worktrees share. REMOTE: the remote-tracking state. ALL: everything,
because the command packs or prunes what others write. A commit needs only TREE, so an open editor
or a slow fetch does not prevent anyone from creating a branch."""

REFRESH, PAGED, ALWAYS_LOCKS = 16, 32, 64
"""REFRESH: a reader that at its end may write what it learned about unchanged files to the index.
It may do so only if the tree is free, and must not hold a lock that a writer needs. PAGED: on a
terminal it may live as long as its pager. ALWAYS_LOCKS: git has no option to prevent the write."""

UNKNOWN = TREE | REFS | REMOTE
FOREIGN = UNKNOWN | 128
"""A program or script unknown to git (`git cola`, an alias into a pager). How long it lives and
which locks it takes is unknown, so it waits for its turn but does not hold it."""


def _set(words: str) -> "frozenset[str]":
    return frozenset(words.split())


READ_ONLY = _set(
    "annotate archive blame bugreport cat-file check-attr check-ignore check-mailmap "
    "check-ref-format cherry column count-objects describe diagnose diff diff-files diff-index "
    "diff-pairs diff-tree fast-export fmt-merge-msg for-each-ref format-patch format-rev fsck "
    "fsck-objects get-tar-commit-id grep help interpret-trailers last-modified log ls-files "
    "ls-remote ls-tree mailinfo merge-base name-rev patch-id pickaxe range-diff repo request-pull "
    "rev-list rev-parse shortlog show show-branch show-index show-ref status stripspace url-parse "
    "var verify-commit verify-pack verify-tag version whatchanged"
)
"""Read-only with any arguments, except for a refreshed index (`refreshes`). A shim starts these
directly."""

_UNLOCKED = READ_ONLY | _set(
    # Objects only.
    "bundle commit-tree hash-object index-pack mailsplit merge-file merge-tree mktag mktree "
    "pack-objects pack-redundant unpack-file unpack-objects "
    # Long-lived: servers, windows, helpers.
    "backfill citool credential credential-cache credential-cache--daemon credential-store daemon "
    "difftool fsmonitor--daemon gui hook http-backend imap-send instaweb mergetool receive-pack "
    "send-email shell upload-archive upload-pack "
    # Commands on other repositories than the current one.
    "clone for-each-repo"
)

_NEEDS = {
    word: needs
    for needs, words in (
        (
            TREE,
            "add am apply checkout-index cherry-pick clean commit fast-import merge "
            "merge-index mv read-tree rebase rerere reset restore revert rm stage update-index "
            "write-tree",
        ),
        (REFS, "branch config init init-db notes replace tag update-server-info"),
        (
            TREE | REFS,
            "checkout filter-branch history replay sparse-checkout stash switch symbolic-ref "
            "update-ref",
        ),
        (REMOTE, "fetch fetch-pack push send-pack"),
        # A fetch walks from the HEADs of all worktrees, and a new worktree has none at first.
        (REFS | REMOTE, "remote worktree"),
        (TREE | REMOTE, "pull"),
        (
            ALL,
            "commit-graph gc maintenance multi-pack-index pack-refs prune prune-packed reflog "
            "refs repack",
        ),
        # Scripts and tools that take several locks; some exit with 0 if they get none.
        (UNKNOWN, "annex bisect jj submodule"),
        (TREE | REFS, "lfs"),
    )
    for word in words.split()
}

_MAY_REFRESH = frozenset(("status", "diff", "describe"))


class Invocation:
    """A parsed git command line. `word` is the subcommand; '': git itself answers."""

    __slots__ = ("arguments", "bare", "directories", "options", "variables", "word")

    def __init__(self) -> None:
        self.options: list[str] = []
        self.directories: list[str] = []
        self.variables: dict[str, str] = {}
        self.bare = False
        self.word = ""
        self.arguments: list[str] = []


_NAMING = {"--git-dir": "GIT_DIR", "--work-tree": "GIT_WORK_TREE", "-C": "", "-c": ""}
WITH_VALUE = frozenset((*_NAMING, "--namespace", "--super-prefix", "--config-env", "--attr-source",
                         "--shallow-file"))  # fmt: skip
ANSWERS = frozenset(("-h", "--help", "-v", "--version", "--exec-path", "--html-path", "--man-path",
                      "--info-path"))  # fmt: skip


def parse(args: "list[str]") -> Invocation:
    """Parse a git command line (without `git`) as git's handle_options does."""
    parsed = Invocation()
    at = 0
    while at < len(args) and args[at][:1] == "-":
        name, has_value, value = args[at].partition("=")
        if args[at] in ANSWERS or name == "--list-cmds":
            return parsed
        if name in WITH_VALUE and not (has_value and name[:2] == "--"):
            at += 1
            value = args[at] if at < len(args) else ""
        if name == "-C" and value:
            parsed.directories.append(value)
        elif _NAMING.get(name):
            parsed.variables[_NAMING[name]] = value
        elif name == "--bare":
            parsed.bare = True
        elif name == "--no-optional-locks":
            parsed.variables["GIT_OPTIONAL_LOCKS"] = "0"
        at += 1
    parsed.options = args[:at]
    if at < len(args):
        parsed.word = args[at]
        parsed.arguments = args[at + 1 :]
    return parsed


def parse_other(tool: str, arguments: "list[str]") -> Invocation:
    """The command line of one of `other_tools` as the git command line that represents it."""
    from sandrun.git import other_tools

    parsed = Invocation()
    parsed.word, parsed.arguments = other_tools.WORDS[tool], arguments
    directory = other_tools.directory(tool, arguments)
    parsed.directories = [directory] if directory else []
    return parsed


def needs(command: Invocation) -> "int | None":
    """The locks that a command needs; 0: none. None: the word is no command of git's, so it may be
    an alias or another program. The latter is `FOREIGN` (`sandrun.git.aliases`)."""
    word, arguments = command.word, command.arguments
    if not word or arguments[:1] in (["-h"], ["--help"]):
        return 0
    if word in _UNLOCKED:
        return refreshes(word, arguments)
    if word not in _NEEDS:
        return None
    reads_only = _READS_ONLY.get(word)
    return 0 if reads_only and reads_only(arguments) else _NEEDS[word]


def refreshes(word: str, arguments: "list[str]") -> int:
    """REFRESH with PAGED or ALWAYS_LOCKS for a command that may refresh the index
    (builtin/commit.c, diff.c, describe.c), else 0. The shim has the same words."""
    if word == "status":
        return REFRESH
    if word == "diff" and not {"--cached", "--staged", "--no-index"}.intersection(arguments):
        return REFRESH | PAGED
    if word == "describe" and any(argument[:7] == "--dirty" for argument in arguments):
        return REFRESH | ALWAYS_LOCKS
    return 0


def is_harmless(command: Invocation) -> bool:
    """Whether a process with this command line can never own a lock."""
    word = command.word
    return (word in READ_ONLY and word not in _MAY_REFRESH) or word in (
        "fsmonitor--daemon",
        "credential-cache--daemon",
    )


def writes_user_files(command: Invocation) -> bool:
    """Whether it may write the user's configuration or stored credentials; yes if unknown."""
    words = ("config", "maintenance", "credential", "credential-store")
    return command.word in words or needs(command) is None


_LISTS = ("--list", "-l", "--contains", "--no-contains", "--merged", "--no-merged", "--points-at")
_SHOWS = ("--show-current", "--color", "--no-color", "--column", "--no-column", "--sort", "-i",
          "--format", "--abbrev", "--no-abbrev", "--ignore-case", "--omit-empty")  # fmt: skip


def _lists(arguments: "list[str]", shows: "tuple[str, ...]") -> bool:
    """Whether `branch` or `tag` only lists: without words, or with an option by which they are
    patterns."""
    listing = False
    words = False
    for argument in arguments:
        name = argument.partition("=")[0]
        if argument[:1] != "-":
            words = True
        elif name in _LISTS:
            listing = True
        elif name not in _SHOWS and name not in shows:
            return False
    return listing or not words


def _branch(arguments: "list[str]") -> bool:
    return _lists(arguments, ("-a", "-r", "-v", "-vv", "-av", "-avv", "--all", "--remotes",
                              "--verbose", "-q"))  # fmt: skip


def _tag(arguments: "list[str]") -> bool:
    if arguments[:1] in (["-v"], ["--verify"]):
        return True
    numbers = [
        word for word in arguments if word == "-n" or (word[:2] == "-n" and word[2:].isdigit())
    ]
    return _lists((["-l"] if numbers else []) + arguments, tuple(numbers))


_CONFIG_VALUE = frozenset(("-f", "--file", "--blob", "--type", "--default", "--comment"))
_CONFIG_READS = frozenset(("-l", "--list", "--get", "--get-all", "--get-regexp", "--get-urlmatch",
                           "--get-color", "--get-colorbool", "--name-only"))  # fmt: skip
_CONFIG_WRITES = frozenset(("--add", "--replace-all", "--unset", "--unset-all", "-e", "--edit",
                            "--rename-section", "--remove-section"))  # fmt: skip


def _config(arguments: "list[str]") -> bool:
    words: list[str] = []
    at = 0
    while at < len(arguments):
        name = arguments[at].partition("=")[0]
        if name in _CONFIG_WRITES:
            return False
        if name in _CONFIG_READS:
            return True
        if name[:1] != "-":
            words.append(name)
        elif arguments[at] in _CONFIG_VALUE:
            at += 1
        at += 1
    return words[:1] in (["get"], ["list"]) or (len(words) < 2 and words[:1] != ["edit"])


def _first_in(*read: str) -> "Callable[[list[str]], bool]":
    """Read-only if the first word is one of `read`; '' stands for a command line without words."""

    def reads_only(arguments: "list[str]") -> bool:
        words = [word for word in arguments if word[:1] != "-"]
        return (words[0] if words else "") in read

    return reads_only


def _reflog(arguments: "list[str]") -> bool:
    return not {"expire", "delete", "drop", "write"}.intersection(arguments[:1])


def _symbolic_ref(arguments: "list[str]") -> bool:
    words = [word for word in arguments if word[:1] != "-"]
    return len(words) == 1 and not {"-d", "--delete"}.intersection(arguments)


def _with(*options: str) -> "Callable[[list[str]], bool]":
    """Read-only with one of these options."""
    return lambda arguments: not set(options).isdisjoint(arguments)


_VALUED = frozenset(("-o", "--push-option", "--repo", "--receive-pack", "--exec", "-e", "--exclude",
                     "--expire"))  # fmt: skip


def _dry_run(arguments: "list[str]") -> bool:
    """Whether an argument requests a dry run; the value of an option does not count."""
    before = ["", *arguments]
    dry = ("-n", "--dry-run")
    return any(w in dry and b not in _VALUED for b, w in zip(before, arguments, strict=False))


def _or_dry_run(
    word: str, reads_only: "Callable[[list[str]], bool]"
) -> "Callable[[list[str]], bool]":
    """As `reads_only`, and also `word` with --dry-run."""
    return lambda arguments: (
        reads_only(arguments) or (arguments[:1] == [word] and _dry_run(arguments))
    )


def _apply(arguments: "list[str]") -> bool:
    """Whether `apply` only reports. Each of these options disables applying; --apply enables it
    again (git-apply(1)), as do `--app` and `--no-check` (gitcli(7))."""
    writes = any(word.startswith(("--ap", "--no-")) for word in arguments)
    return not writes and _with("--check", "--numstat", "--stat", "--summary")(arguments)


def _replace(arguments: "list[str]") -> bool:
    """Whether `replace` only lists (git-replace(1)), as it does without arguments."""
    return not arguments or any(
        word in ("-l", "--list") or word[:9] == "--format=" for word in arguments
    )


def _stash(arguments: "list[str]") -> bool:
    return arguments[:1] in (["list"], ["show"]) or arguments[:2] == ["export", "--print"]


_LFS_WRITES = frozenset(("checkout", "install", "migrate", "pull", "uninstall", "update"))
"""git-lfs(1): commands that write the index, the config or refs; others write their own files."""


def _other(tool: str) -> "Callable[[list[str]], bool]":
    """Whether a command of one of the `other_tools` needs no turn."""

    def reads_only(arguments: "list[str]") -> bool:
        from sandrun.git import other_tools

        return other_tools.is_harmless(tool, arguments)

    return reads_only


_READS_ONLY: "Mapping[str, Callable[[list[str]], bool]]" = {
    "annex": _other("git-annex"),
    "apply": _apply,
    "bisect": _first_in("log", "terms", "view", "visualize"),
    "branch": _branch,
    "clean": _dry_run,
    "commit-graph": _first_in("verify"),
    "config": _config,
    "jj": _other("jj"),
    "lfs": lambda arguments: _LFS_WRITES.isdisjoint(arguments[:1]),
    "maintenance": _first_in("is-needed"),
    "multi-pack-index": _first_in("verify"),
    "notes": _first_in("", "list", "show", "get-ref"),
    "prune": _dry_run,
    "prune-packed": _dry_run,
    "push": _dry_run,
    "reflog": _reflog,
    "refs": _first_in("verify", "list", "exists"),
    "remote": _or_dry_run("prune", _first_in("", "show", "get-url")),
    "replace": _replace,
    "replay": _with("--ref-action=print"),
    "rerere": _first_in("status", "diff", "remaining"),
    "sparse-checkout": _first_in("list"),
    "stash": _stash,
    # Not foreach: it starts the real git, so these commands acquire no turns of their own.
    "submodule": _first_in("", "status", "summary"),
    "symbolic-ref": _symbolic_ref,
    "tag": _tag,
    "worktree": _or_dry_run("prune", _first_in("list")),
}

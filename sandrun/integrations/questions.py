"""Queries: a tool's command lines that only print information, according to its documentation.

A query does not queue, so a command line that builds must never count as one. A word counts only
for the tools for which it is a query (`npm version patch` and `make version` do work, `gradle -V`
and `mvn -V` go on to build). For a tool that is not listed here, only `--version` or `--help`
alone counts: `-h` and `-V` have other meanings for many tools (`ls -h`, `sort -V`). Words after a
program's name or `--` belong to that program (`npx tsc --version`, `cargo run -- -V`). In doubt, a
command line queues.
"""

_ALONE = "--version --help"

_MAKE = "-v --version -h --help"

# First words that make a query, whatever follows. `word$`: only if alone; `one+two`: these two
# words.
_FIRST = {
    # GNU make(1); `make -p` builds, `make help` and `make version` are goals
    "make": _MAKE,
    "gmake": _MAKE,
    "ninja": "--version -h --help",  # ninja -h
    "meson": "--version -v --help -h help introspect",  # meson(1)
    "cmake": "--version -version --help -help -h --help-*",  # cmake(1), "View Help"
    "ctest": "--version -version --help -help -h --help-*",  # ctest(1), "View Help"
    "just": "--version -V --help -h --list -l --summary --show -s --dump --variables --groups",
    "task": "--version --help -h --list -l --list-all -a --summary",  # taskfile.dev, CLI reference
    "rake": "--version -V --help -h -H -T --tasks -P --prereqs -D --describe -W --where",  # rake -H
    "bazel": "version help info --version --help",  # bazel.build, command-line reference
    # docs.gradle.org, command-line interface: -V goes on to build, `help` and `tasks` are tasks
    "gradle": "--version -v --help -h -\\?",
    "mvn": "--version -v --help -h",  # mvn --help: -V goes on to build
    "dotnet": "--version --info --list-sdks --list-runtimes --help -h",  # learn.microsoft.com
    # docs.npmjs.com, CLI commands; `npm version` alone lists, `npm run` alone lists the scripts
    "npm": "--version -v --help -h help ls list ll la root prefix bin view info show explain why "
    "search query version$ run$ run-script$ config+get config+list config+ls pkg+get",
    "npx": "--version -v --help -h",  # docs.npmjs.com; elsewhere they are the program's
    # pnpm.io/cli; other words may be the names of scripts
    "pnpm": "--version -v --help -h help ls list ll la why root bin run$ config+get config+list",
    # classic.yarnpkg.com and yarnpkg.com/cli, what both have; since yarn 2 `list` may be a script
    "yarn": "--version -v --help -h info why config+get",
    "node": "--version -v --help -h --v8-options",  # nodejs.org, command-line API
    "bun": "--version -v --revision --help -h",  # bun --help
    "deno": "--version -V --help -h help info types",  # docs.deno.com, CLI reference
    "tsc": "--version -v --help -h --all --showConfig --listFilesOnly",  # tsc CLI options
    # doc.rust-lang.org/cargo/commands; an alias cannot have one of these names
    "cargo": "--version -V --list --help -h help version metadata tree locate-project search "
    "pkgid info read-manifest",
    "rustc": "--version -V -vV --help -h --print --explain",  # rustc --help
    "go": "version env list doc help",  # go help
    # docs.pytest.org, command-line flags
    "pytest": "--version -V --help -h --markers --fixtures --fixtures-per-test",
    "tox": "--version --help -h --listenvs -l --listenvs-all -a --showconfig list l config c "
    "depends de",  # tox.wiki, CLI
    "nox": "--version --help -h --list -l --list-sessions",  # nox --help
    "pip": "--version -V --help -h help list show freeze check inspect debug",  # pip.pypa.io/cli
    # docs.astral.sh/uv/reference/cli; `uv version 1.2.3` and --bump write
    "uv": "--version -V --help -h help version$ pip+list pip+show pip+freeze pip+tree pip+check "
    "python+list python+find python+dir cache+dir tool+list tool+dir self+version",
    # python-poetry.org/docs/cli; `poetry version patch` writes
    "poetry": "--version -V --help -h help list about show check version$ env+info env+list",
    "hatch": "--version --help -h version$",  # hatch.pypa.io, CLI reference
    # docs.docker.com/reference/cli/docker
    "docker": "--version -v --help -h help version info ps images inspect logs port top diff "
    "history search events stats compose+ps compose+ls compose+logs compose+version compose+config",
}
_SAME = {"py.test": "pytest", "pip3": "pip", "gradlew": "gradle", "mvnw": "mvn", "podman": "docker",
         "gnumake": "gmake"}  # fmt: skip

# Words that make a query anywhere before `--`.
_ANYWHERE = {
    # GNU make(1): -t runs no recipe; make takes all of these as its own even after a goal
    "make": "--just-print|--dry-run|--recon|--question|--touch|--version|--help",
    "ninja": "-n|-h|-nv|-vn|--version",
    "ctest": "-N|--show-only|--show-only=*|--print-labels",
    "pytest": "--co|--collect-only|--help|-h|--version|--markers|--fixtures",
}
_ANYWHERE["gmake"] = _ANYWHERE["make"]
# make's flags may be bundled. `-fbuild/not.mk` contains an n, but is no bundle of flags.
_BUNDLES = {"make": ("-*[!bBdehiklLmnpqrRsStvw]*", "-*[hnqtv]*")}
_BUNDLES["gmake"] = _BUNDLES["make"]

# Exceptions, which build: `go list` may compile (go help list).
_NOT = {"go": '"list "*-export*|"list "*-compiled*'}

_AT_ONCE = 'become "$@" ;;'


def shell(tool: str) -> str:
    """Shell code with which a shim becomes its tool (`become`) at once if its words are a query."""
    tool = _SAME.get(tool, tool)
    words = _FIRST.get(tool, "").split()
    alone = [word.rstrip("$") for word in words if word.endswith("$")]
    pairs = [word.replace("+", ":") for word in words if "+" in word]
    first = [word for word in words if not set(word) & set("$+")]
    lines = [f"[ $# != 1 ] || case $1 in {'|'.join(_ALONE.split() + alone)}) {_AT_ONCE} esac"]
    if first:
        lines.append(f"case ${{1-}} in {'|'.join(first)}) {_AT_ONCE} esac")
    if pairs:
        lines.append(f"case ${{1-}}:${{2-}} in {'|'.join(pairs)}) {_AT_ONCE} esac")
    if tool in _NOT:
        lines = [f'case "$*" in {_NOT[tool]}) ;; *)', *lines, ";; esac"]
    if tool in _ANYWHERE:
        arms = ["--) break ;;", f"{_ANYWHERE[tool]}) {_AT_ONCE}"]
        if tool in _BUNDLES:
            other, bundle = _BUNDLES[tool]
            arms += [f"{other}) ;;", f"{bundle}) {_AT_ONCE}"]
        lines.append(f"for word; do case $word in {' '.join(arms)} esac; done")
    return "\n".join(lines)

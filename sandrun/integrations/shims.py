"""Shims: small programs, in a folder first on PATH, that run the tool of the same name in the
queue.

Promises of a shim for TOOL
- It runs the next TOOL on PATH through `sandrun --`. Inside a run of the same queue, and for
  queries that run nothing (`make -n`, `go env`: `sandrun.integrations.questions`), it becomes that
  tool at once: one exec of a POSIX sh and no other process.
- It never starts itself again. No folder of shims (marked by the file `.sandrun-shims`) is searched
  for the tool. If the search finds another program's shim (pyenv, asdf, ...) that comes back
  through PATH, it continues after that one, so it ends. A tool that starts itself by name finds
  itself (`sandrun.git.shim` distinguishes the two cases).
- If sandrun is missing or broken, it prints a warning and runs the tool.
- A build that was configured with it has stored its path (CMakeCache.txt, config.status). So a
  removed shim leaves a forwarder, which finds the tool in the same way and runs it without sandrun.
- A shim that `sandrun init` added ends with comments that name the projects that want it. A shim
  without them is the user's own.

The test for being inside a run is the same as in sandrun.mk: every run that the environment names
has a ticket that its owner still holds open, and encloses us (by its cgroup, or with its owner
among our ancestors), and no other project lies between the current directory and that run's
project. Where sh cannot decide, sandrun is started and decides. (Without /proc, as on macOS, the
ticket files and the environment are trusted.)

Left to others: `git`, `jj` and `git-annex`, whose shims are the guard's (`sandrun.git.shim`), and
the text of the shims for Windows (`sandrun.integrations.windows_shims`), which are batch files.
"""

import contextlib
import os
import shutil
import sys
from collections.abc import Iterable

from sandrun.model import SandrunError, command_text
from sandrun.platform.folders import create, data_home, make_folders

MARK = ".sandrun-shims"
_FIRST_LINE = "# sandrun shim for {tool}"
_ENDING = ".cmd" if sys.platform == "win32" else ""
_WANTED = b"rem sandrun init: " if sys.platform == "win32" else b"# sandrun init: "

_PRIVATE = ".new."
"""How the name of a file begins that will replace another one; the name of a tool cannot."""
_ABANDONED = 60  # seconds

_TEXT = """#!/bin/sh
{first_line}: {tool} runs in the project's queue (sandrun shims)
{search}
become() {{
{become}
}}
{questions}
inside() {{
	[ "${{SANDRUN_RUNS-}}" ] && [ "${{SANDRUN_PROJECT-}}" ] || return
	here=$PWD
	marks=".git sandrun.toml pyproject.toml"
	[ ! -e "$SANDRUN_PROJECT/.git" ] || marks=.git
	while [ "$here" != "$SANDRUN_PROJECT" ]; do
		[ "$here" ] && [ ! -L "$here" ] || return
		for name in $marks; do [ ! -e "$here/$name" ] || return; done
		here=${{here%/*}}
	done
	if [ "$PWD" != "$here" ]; then
		for name in $marks; do [ -e "$here/$name" ] && break; done || return
	fi
	[ -d /proc/self/fd ] || believe=1
	IFS=:
	for run in $SANDRUN_RUNS; do
		live "$run" || return
	done
}}
live() {{ # DIRECTORY/ID: that run is alive and encloses us; a dead run may leave its file
	unset IFS
	for ticket in "${{1%/*}}"/r*."${{1##*/}}".*; do
		[ -e "$ticket" ] || return
	done
	[ -z "${{believe-}}" ] || return 0
	owner=${{ticket##*/}} owner=${{owner#*.*.}} owner=${{owner%%.*}}
	for file in /proc/"$owner"/fd/*; do
		[ ! "$file" -ef "$ticket" ] || {{ below "$1" 2>/dev/null; return; }}
	done
	return 1
}}
below() {{ # DIRECTORY/ID: its cgroup contains us, or its owner is an ancestor
	while read -r line; do
		case $line in *"/sandrun-${{1##*/}}"*) return 0 ;; esac
	done </proc/self/cgroup
	above=$PPID
	while [ "$above" != "$owner" ]; do
		[ "$above" -gt 1 ] || return
		while read -r line; do case $line in PPid:*) break ;; esac; done \
			<"/proc/$above/status" || return # it has just exited
		above=${{line##*[!0-9]}}
	done
}}
if inside; then become "$@"; fi
if [ -x {python} ] && [ -e {launch} ]; then
	SANDRUN_SHIM=":$$:$note"
	exec {python} -I -S {launch} {name}-- "$real" "$@"
fi
echo >&2 "sandrun: {tool} runs without queue and memory limit: sandrun is missing"
echo >&2 "sandrun: hint: install it and run: sandrun shims add {tool}; or remove $0"
become "$@"
"""

_NAME_IS_SHOWN = ("make", "gmake")
"""Tools that show the name by which they were started: $(MAKE). Other tools use argv[0] to find
their own files, so for them a path is safer than a name that leads to the shim again."""

# A POSIX sh cannot give a program another name than its path, but bash can. -p ignores $BASH_ENV.
# (Where SHLVL was unset, bash's exec leaves it as 0.) Not if the user has exported SHELLOPTS or
# BASHOPTS, which bash would replace: a recipe's `pipefail` matters more than a name. (A sh that is
# bash has both.)
_NAMED = """\tcase ${{BASH_VERSION+b}}${{SHELLOPTS+s}}${{BASHOPTS+s}} in b* | '')
		[ ! -x /bin/bash ] ||
			exec /bin/bash -pc 'exec -a {tool} "$@"' bash "$real" "$@" ;;
	esac
"""

_FORWARDER = "# sandrun forwarder for {tool}"
_FORWARDING = """#!/bin/sh
{forwarder}, in place of the sandrun shim, for builds that were configured with it
{search}exec "$real" "$@"
"""


def directory() -> str:
    """The folder of the shims: $XDG_DATA_HOME/sandrun/shims."""
    data = data_home()
    if not data:
        raise SandrunError("there is no home directory for the shims", "set HOME")
    return os.path.join(data, "sandrun", "shims")


def _bytes(tool: str) -> bytes:
    if sys.platform == "win32":
        from sandrun.integrations import windows_shims

        return windows_shims.text(tool, _FIRST_LINE.format(tool=tool))
    return text(tool).encode()


def text(tool: str) -> str:
    """The shim for a tool, which starts this sandrun."""
    library = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    from sandrun.git import other_tools, shim
    from sandrun.integrations import questions

    shown = tool in _NAME_IS_SHOWN
    if tool == "git":
        return shim.text(shim.launch(sys.executable, library))
    if tool in other_tools.WORDS:
        return shim.other(tool, shim.launch(sys.executable, library))
    return _TEXT.format(
        tool=tool,
        first_line=_FIRST_LINE.format(tool=tool),
        search=shim.search(tool),
        questions=questions.shell(tool),
        name=f"--as {tool} " if shown else "",
        become=(_NAMED.format(tool=tool) if shown else "") + '\texec "$real" "$@"',
        python=command_text([sys.executable]),
        launch=command_text([os.path.join(library, "sandrun", "cli", "launch.py")]),
    )


def add(tool: str, projects: "Iterable[str]" = ()) -> str:
    """Write the shim for a tool and return its path. `projects` are those that want it; none: the
    user added it. Raises SandrunError for an impossible name.
    """
    if not tool or not set(tool) <= _NAME or tool[0] in "-.":
        raise SandrunError(f"{tool!r} cannot be the name of a tool", "sandrun shims add make")
    if tool in ("sandrun", "sh", "env", "python", "python3"):
        raise SandrunError(f"the shims themselves need {tool}: it cannot have a shim")
    folder = directory()
    make_folders(folder)
    _write(os.path.join(folder, MARK), b"")
    path = os.path.join(folder, tool + _ENDING)
    if os.path.lexists(path) and not _is_ours(path, tool):
        raise SandrunError(f"{path} is not one of sandrun's shims", "move it away")
    _replace(path, _bytes(tool) + b"".join(_WANTED + os.fsencode(r) + b"\n" for r in projects))
    return path


def _replace(path: str, text: bytes) -> None:
    folder, name = os.path.split(path)
    private = os.path.join(folder, f"{_PRIVATE}{name}.{os.urandom(4).hex()}")
    try:
        _write(private, text, 0o755)
        _sweep(folder, os.stat(private).st_mtime)
        os.replace(private, path)  # a shell that reads the old file must not see half of this one
    except BaseException:
        with contextlib.suppress(OSError):  # the first failure is the one to report
            os.unlink(private)
        raise


def _sweep(folder: str, now: float) -> None:
    """Remove the private files of killed writers: no tool's name begins like theirs, and no writer
    takes as long as `_ABANDONED`. `now` is by the clock of the file system."""
    for name in os.listdir(folder):
        if name.startswith(_PRIVATE):
            path = os.path.join(folder, name)
            with contextlib.suppress(OSError):  # another sweep was faster
                if now - os.lstat(path).st_mtime > _ABANDONED:
                    os.unlink(path)


def _write(path: str, data: bytes, mode: int = 0o644) -> None:
    try:
        with open(create(path, most=mode), "wb") as file:
            file.write(data)
    except FileExistsError:
        if data:
            raise


_NAME = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.+-")


def remove(tool: str, forward: bool = False) -> str:
    """Remove the shim for a tool, or its forwarder, and return its path.

    With `forward`, a forwarder replaces the shim (not on Windows). Raises SandrunError if there is
    no shim.
    """
    path = os.path.join(directory(), tool + _ENDING)
    if not _is_ours(path, tool) or (forward and tool not in installed()):
        raise SandrunError(f"there is no shim for {tool}", "sandrun shims list")
    if forward and sys.platform != "win32":
        from sandrun.git import shim

        forwarder = _FORWARDER.format(tool=tool)
        text = _FORWARDING.format(forwarder=forwarder, search=shim.search(tool))
        _replace(path, text.encode())
    else:
        os.unlink(path)
    return path


def wanted_by(tool: str) -> "list[str]":
    """The projects that want the shim for a tool; an empty list if the user added it."""
    with open(os.path.join(directory(), tool + _ENDING), "rb") as file:
        lines = [line[len(_WANTED) :] for line in file if line.startswith(_WANTED)]
    return [os.fsdecode(line.rstrip(b"\n")) for line in lines]


def installed() -> "list[str]":
    """The tools that have a shim."""
    folder = directory()
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
    tools = [name.removesuffix(_ENDING) for name in names if name.endswith(_ENDING)]
    return [tool for tool in tools if _is_shim(os.path.join(folder, tool + _ENDING), tool)]


def _is_ours(path: str, tool: str) -> bool:
    return _is_shim(path, tool) or _has(path, _FORWARDER.format(tool=tool))


def _is_shim(path: str, tool: str) -> bool:
    return _has(path, _FIRST_LINE.format(tool=tool))


def _has(path: str, line: str) -> bool:
    try:
        with open(path, "rb") as file:
            return line.encode() in file.read(200)
    except OSError:
        return False


def active() -> bool:
    """Whether the folder of the shims is on PATH."""
    return directory() in os.environ.get("PATH", "").split(os.pathsep)


def hidden(tool: str) -> str:
    """The program on PATH that comes before our shim for a tool; '' if there is none, or if the
    shims are not on PATH."""
    found = shutil.which(tool)
    return found if active() and found and os.path.dirname(found) != directory() else ""


def activation(shell: str) -> str:
    """The code that puts the shims first on PATH in a shell. It also moves them to the front of an
    inherited PATH in which a version manager has put its own shims before them.
    """
    if shell in ("cmd", "powershell"):
        from sandrun.integrations import windows_shims

        return windows_shims.activation(shell, directory())
    folder = command_text([directory()])
    if shell == "fish":
        return (
            f'if test "$PATH[1]" != {folder}; '
            f"set -gx PATH {folder} (for d in $PATH; test $d = {folder}; or echo $d; end); end"
        )
    return (
        f'case "$PATH:" in {folder}:*) ;; *) sandrun_shims={folder}; PATH=":$PATH:"; '
        'PATH=${PATH//":$sandrun_shims:"/:}; PATH=${PATH%:}; export PATH="$sandrun_shims$PATH"; '
        "unset sandrun_shims ;; esac"
    )

"""Shims: small programs in a folder of the PATH that stand before the tools they are named after.

Promises, of a shim for TOOL
- It runs the first TOOL on PATH behind it, through `sandrun --`. Inside a run of the same queue,
  and for questions that run nothing (`make -n`, `go env`: `sandrun.integrations.questions`), it
  becomes that tool at once: one exec of a POSIX sh and no other process.
- It never starts itself again. No folder of shims is ever searched for the tool (the file
  `.sandrun-shims` marks them), and when what it found was another's shim (pyenv, asdf, ...) that
  comes back by way of the PATH, the search goes on behind that one, and it ends. A tool that starts
  itself by name finds itself (`sandrun.git.shim` tells them apart).
- If sandrun is gone or broken it says so and runs the tool.
- A build that was configured with it knows it by its path (CMakeCache.txt, config.status), so one
  that is removed leaves a forwarder: the tool, found in the same way, without sandrun.
- One that `sandrun init` added has the projects that want it as comments at its end; one without
  them is the user's own.

What says that it is inside is the same as in sandrun.mk: every run that the environment names has
a ticket that its owner still holds open, and is around us (its cgroup, or its owner among our
ancestors), and there is no other project between here and that run's. Where sh cannot tell, a start
of sandrun can. (Without a /proc, as on macOS, the tickets' files and the environment are believed.)

Left to others: `git`, `jj` and `git-annex`, which have shims of the guard
(`sandrun.git.shim`), and the text of those for Windows (`sandrun.integrations.windows_shims`),
which are batch files.
"""

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

_TEXT = """#!/bin/sh
{first_line}: {tool} takes its turn in the project's queue (sandrun shims)
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
live() {{ # DIRECTORY/ID: that run goes on, and around us; its file may be left, a variable copied
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
below() {{ # DIRECTORY/ID: its cgroup is around us, or its owner is an ancestor
	while read -r line; do
		case $line in *"/sandrun-${{1##*/}}"*) return 0 ;; esac
	done </proc/self/cgroup
	above=$PPID
	while [ "$above" != "$owner" ]; do
		[ "$above" -gt 1 ] || return
		while read -r line; do case $line in PPid:*) break ;; esac; done \
			<"/proc/$above/status" || return # it has just ended
		above=${{line##*[!0-9]}}
	done
}}
if inside; then become "$@"; fi
if [ -x {python} ] && [ -e {launch} ]; then
	SANDRUN_SHIM=":$$:$note"
	exec {python} -I {launch} {name}-- "$real" "$@"
fi
echo >&2 "sandrun: {tool} runs without queue and memory limit: sandrun is not where it was"
echo >&2 "sandrun: hint: install it and run: sandrun shims add {tool}; or remove $0"
become "$@"
"""

_NAME_IS_SHOWN = ("make", "gmake")
"""Who shows the name by which it was started: $(MAKE). Others find their own files by it, and
there a path is safer than a name that leads to the shim again."""

# A POSIX sh cannot give a program another name than its path. -p: no $BASH_ENV. (Where no SHLVL
# was, bash's exec leaves a 0.) Not where the user has exported SHELLOPTS or BASHOPTS, which bash
# would replace: a recipe's `pipefail` matters more than a name. (A sh that is bash has both.)
_NAMED = """\tcase ${{BASH_VERSION+b}}${{SHELLOPTS+s}}${{BASHOPTS+s}} in b* | '')
		[ ! -x /bin/bash ] ||
			exec /bin/bash -pc 'exec -a {tool} "$@"' bash "$real" "$@" ;;
	esac
"""

_FORWARDER = "# sandrun forwarder for {tool}"
_FORWARDING = """#!/bin/sh
{forwarder}, where the sandrun shim was: builds that were configured with it go on
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
    """The shim for a tool, with this very sandrun in it."""
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
    """Write the shim for a tool, which `projects` want (nobody: the user); its path.

    Raises SandrunError for a name that cannot be one.
    """
    if not tool or not set(tool) <= _NAME or tool[0] in "-.":
        raise SandrunError(f"{tool!r} cannot be the name of a tool", "sandrun shims add make")
    if tool in ("sandrun", "sh", "env", "python", "python3"):
        raise SandrunError(f"a shim for {tool} would stand in the way of the shims themselves")
    folder = directory()
    make_folders(folder)
    _write(os.path.join(folder, MARK), b"")
    path = os.path.join(folder, tool + _ENDING)
    if os.path.lexists(path) and not _is_ours(path, tool):
        raise SandrunError(f"{path} is not a shim of sandrun's", "move it away")
    _replace(path, _bytes(tool) + b"".join(_WANTED + os.fsencode(r) + b"\n" for r in projects))
    return path


def _replace(path: str, text: bytes) -> None:
    private = f"{path}.{os.getpid()}"
    _write(private, text, 0o755)
    os.replace(private, path)  # a shell that is reading the old one must not read half of this


def _write(path: str, data: bytes, mode: int = 0o644) -> None:
    try:
        with open(create(path, most=mode), "wb") as file:
            file.write(data)
    except FileExistsError:
        if data:
            raise


_NAME = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.+-")


def remove(tool: str, forward: bool = False) -> str:
    """Remove the shim for a tool, or its forwarder; its path.

    With `forward` a forwarder takes the shim's place (not on Windows). Raises SandrunError if there
    is no shim.
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
    """The projects that want the shim for a tool, if `sandrun init` added it."""
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
    """What is found on PATH before our shim for a tool, although the shims are on PATH; or ''."""
    found = shutil.which(tool)
    return found if active() and found and os.path.dirname(found) != directory() else ""


def activation(shell: str) -> str:
    """What puts the shims first on PATH in a shell; in all but cmd.exe said again it does so again.

    A shell in a shell has inherited a PATH with them, before which a version manager has put its
    own meanwhile.
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

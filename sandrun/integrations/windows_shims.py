"""The shims for Windows: batch files, which cmd.exe and PowerShell find on PATH by PATHEXT.

A shim passes its words to sandrun, which looks for the tool after all folders of shims
(`sandrun.platform.windows_spawn.program`). Inside a run of the same queue the tool starts at once,
after the start of a Python. Without sandrun, the shim prints a warning, removes its own folder from
PATH and runs the tool.
"""

import os
import sys

from sandrun.model import SandrunError

_TEXT = """@echo off
rem {first_line}: {tool} runs in the project's queue (sandrun shims)
setlocal
if not exist "{python}" goto broken
if not exist "{launch}" goto broken
"{python}" -I "{launch}" -- {tool} %*
exit /b %ERRORLEVEL%
:broken
>&2 echo sandrun: {tool} runs without queue and memory limit: sandrun is missing
>&2 echo sandrun: hint: install it and run: sandrun shims add {tool}; or remove %~f0
for %%D in ("%~dp0.") do set "here=%%~fD"
call set "PATH=%%PATH:%here%;=%%"
{tool} %*
"""
_FOLDERS = ("LOCALAPPDATA", "APPDATA", "USERPROFILE", "PROGRAMFILES")
"""Variables that replace the start of a path, which often is not ASCII: cmd.exe reads a batch file
in the code page that the console has when the shim is used."""


def text(tool: str, first_line: str) -> bytes:
    """The shim for a tool, which starts this sandrun. Raises SandrunError."""
    launch = os.path.join(os.path.dirname(os.path.dirname(__file__)), "cli", "launch.py")
    filled = _TEXT.format(
        tool=tool,
        first_line=first_line,
        python=_written(sys.executable),
        launch=_written(os.path.abspath(launch)),
    )
    try:
        return filled.replace("\n", "\r\n").encode("ascii")
    except UnicodeEncodeError:
        raise SandrunError(
            f"a batch file cannot name {filled[filled.index('exist') :].split(chr(34))[1]}",
            "install sandrun in a folder with a plain name, or below %LOCALAPPDATA%",
        ) from None


def _written(path: str) -> str:
    """A path in the form that a batch file needs."""
    for name in _FOLDERS:
        folder = os.environ.get(name, "")
        if folder and path.lower().startswith(folder.lower() + "\\"):
            return f"%{name}%" + path[len(folder) :].replace("%", "%%")
    return path.replace("%", "%%")


_QUOTES = "'\u2018\u2019\u201a\u201b"
"""Each of these ends a string in single quotes; two of them stand for one (PowerShell's source,
CharTraits.cs, IsSingleQuote)."""


def activation(shell: str, folder: str) -> str:
    """The code that puts the shims first on PATH in cmd.exe or PowerShell."""
    if shell == "powershell":  # also on other systems, with their separator
        quoted = "".join(letter * 2 if letter in _QUOTES else letter for letter in folder)
        differs = "-ne" if sys.platform == "win32" else "-cne"
        return (
            f"$env:PATH = (@('{quoted}') + "
            f"@(@($env:PATH -split '{os.pathsep}') {differs} '{quoted}')) -join '{os.pathsep}'"
        )
    return f'set "PATH={folder};%PATH%"'

"""Whether a configuration file of git, or one that it includes, speaks of something.

For rare files only: large ones, and those with an include. It reads what git would, and more: an
`includeIf` counts whatever its condition, for that depends on where in the run a git starts.
"""

import os

from sandrun.small_files import read_small

_DEEP = 10  # git's own MAX_INCLUDE_DEPTH, config.c


def mentions(path: str, word: bytes, home: str, depth: int = 0) -> bool:
    """Whether the lower-case `word` stands in the file or, `depth` deep by now, an included one.

    `home` is what `~` stands for. A file that cannot be read says nothing.
    """
    try:
        data = read_small(path) or b""
    except OSError:
        return False
    if word in data.lower():
        return True
    files = _included(data, os.path.dirname(path), home) if depth < _DEEP else []
    return any(mentions(file, word, home, depth + 1) for file in files)


def _included(data: bytes, folder: str, home: str) -> "list[str]":
    found = []
    section = b""
    for line in map(bytes.strip, data.splitlines()):
        head, end, rest = line.partition(b"]")
        if line[:1] == b"[" and end:
            section = head
        name, _, value = (rest if line[:1] == b"[" else line).partition(b"=")
        if section.lower().startswith(b"[include") and name.strip().lower() == b"path":
            path = os.fsdecode(value.strip().strip(b'"'))
            path = home + path[1:] if path.startswith("~/") else path
            found.append(os.path.join(folder, path))
    return found

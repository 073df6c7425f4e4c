"""Whether a configuration file of git, or one that it includes, speaks of something.

For rare files only: large ones, and those with an include. It reads what git would, and more: an
`includeIf` counts whatever its condition, for that depends on where in the run a git starts.
"""

import os

from sandrun.platform.small_files import read_small


def mentions(path: str, word: bytes, home: str) -> bool:
    """Whether the lower-case `word` stands in the file, or in one that it includes at any depth.

    `home` is what `~` stands for. A file that cannot be read says nothing. Each file is read once:
    files that include each other would be read a thousand times over before git's own limit on the
    depth (10, config.c) ends it.
    """
    ahead = [path]
    seen = set()
    while ahead:
        path = ahead.pop()
        try:
            real = os.path.realpath(path)
            data = b"" if real in seen else read_small(path) or b""
        except (OSError, ValueError):  # ValueError: a NUL in its name
            continue
        seen.add(real)
        if word in data.lower():
            return True
        ahead += _included(data, os.path.dirname(path), home)
    return False


def _included(data: bytes, folder: str, home: str) -> "set[str]":
    found = set()
    section = b""
    for line in map(bytes.strip, data.removeprefix(b"\xef\xbb\xbf").splitlines()):
        head, end, rest = line.partition(b"]")
        if line[:1] == b"[" and end:
            section = head
        name, _, value = (rest if line[:1] == b"[" else line).partition(b"=")
        if section.lower().startswith(b"[include") and name.strip().lower() == b"path":
            if b'"' not in value:
                value = value.partition(b"#")[0].partition(b";")[0]
            path = os.fsdecode(value.strip().strip(b'"'))
            path = home + path[1:] if path.startswith("~/") else path
            found.add(os.path.join(folder, path))
    return found

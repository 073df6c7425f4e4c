"""Whether a git configuration file, or a file that it includes, contains a word.

Only for rare files: large ones and those with an include. It reads what git would read and more: an
`includeIf` counts whatever its condition, which depends on where in the run a git starts.
"""

import os

from sandrun.platform.small_files import read_small


def mentions(path: str, word: bytes, home: str) -> bool:
    """Whether the file, or a file that it includes at any depth, contains the lower-case `word`.

    `home` replaces `~`. A file that cannot be read contains nothing. Each file is read once: files
    that include each other would be read a thousand times before git's limit on the depth (10,
    config.c).
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

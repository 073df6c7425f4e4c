"""Load our own modules from their compiled files with five system calls each.

Python's own finder lists each directory, tries five suffixes for a package and opens the file
through two layers: 1.2 ms of a start (`tests/setup bench launch`). The loaded module is the same. A
compiled file is used only if it belongs to this Python and to the current source (PEP 552: its time
and size). In every other case the finder returns None, and Python asks its own finders: if there is
no compiled file, if it is checked by a hash, in a zip file, for a module that does not exist.
"""

import marshal
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import CodeType, ModuleType

_PACKAGES = frozenset(
    ("backends", "cli", "config", "doctor", "git", "insight", "integrations", "lifecycle")
    + ("platform", "queue", "supervise")
)
HEADER = 16
"""Bytes before the code in a compiled file (PEP 552): magic number, flags, time and size."""


def validity(source: os.stat_result) -> bytes:
    """What the header of a compiled file has after the magic number if it is of that source, and
    valid by time and size: no flags, and both as 32 bits."""
    numbers = 0, int(source.st_mtime) & 0xFFFFFFFF, source.st_size & 0xFFFFFFFF
    return b"".join(number.to_bytes(4, "little") for number in numbers)


class _Finder:
    """A finder (importlib.abc.MetaPathFinder) for our modules, which are in the directory `top`."""

    def __init__(self, top: str, magic: bytes) -> None:
        self.top = top
        self.magic = magic
        self.suffix = f".{sys.implementation.cache_tag}.pyc"

    def find_spec(self, name: str, *_: object) -> "ModuleSpec | None":
        if not name.startswith("sandrun."):
            return None
        room, leaf = [*name[8:].split(".", 1), ""][:2]
        is_package = not leaf and room in _PACKAGES
        folder = f"{self.top}/{room}" if leaf or is_package else self.top
        stem = leaf or ("__init__" if is_package else room)
        source, cached = f"{folder}/{stem}.py", f"{folder}/__pycache__/{stem}{self.suffix}"
        code = self._read(source, cached)
        if code is None:
            return None
        kind: type[ModuleSpec] = type(sys.__spec__)  # spares importing importlib.machinery
        spec = kind(name, _Loader(code), origin=source, is_package=is_package)  # type: ignore[arg-type]
        if is_package:
            spec.submodule_search_locations = [folder]
        spec.has_location = True
        spec.cached = cached
        return spec

    def _read(self, source: str, cached: str) -> "CodeType | None":
        """The code in a compiled file; None if the file does not belong to the current source."""
        try:
            fd = os.open(cached, os.O_RDONLY)
            try:
                data = os.read(fd, os.fstat(fd).st_size)
            finally:
                os.close(fd)
            info = os.stat(source)
        except OSError:
            return None
        if data[:HEADER] != self.magic + validity(info):
            return None
        try:
            code: CodeType = marshal.loads(memoryview(data)[HEADER:])
        except (EOFError, TypeError, ValueError):  # cut short
            return None
        return code


class _Site:
    """The last finder, where Python was started without `site` (-S): what nobody has found may be
    in a folder that only `site` knows (a .pth file, the system's packages), so it runs then."""

    def find_spec(self, name: str, *_: object) -> "ModuleSpec | None":
        if "." in name or name in sys.stdlib_module_names:
            return None
        sys.meta_path.remove(self)
        import site

        from sandrun.__main__ import isolate

        site.main()
        isolate()
        found = (finder.find_spec(name, None) for finder in sys.meta_path)
        return next(filter(None, found), None)


class _Loader:
    """A loader (importlib.abc.Loader) of code that has been read."""

    def __init__(self, code: "CodeType") -> None:
        self.code = code

    def create_module(self, spec: "ModuleSpec") -> None:
        """None: Python creates the module."""

    def exec_module(self, module: "ModuleType") -> None:
        exec(self.code, module.__dict__)


def install() -> None:
    """Let Python ask this finder before its own, where compiled files have their usual names; and
    run `site` before a module counts as missing."""
    if sys.flags.no_site:
        sys.meta_path.append(_Site())
    magic = getattr(sys.modules.get("_frozen_importlib_external"), "MAGIC_NUMBER", b"")
    usual = sys.implementation.cache_tag and not sys.pycache_prefix and not sys.flags.optimize
    if magic and usual and sys.platform != "win32":
        sys.meta_path.insert(0, _Finder(os.path.dirname(__file__), magic))

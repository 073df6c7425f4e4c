"""Load our own modules from their compiled files, many of them with one read.

Python's own finder lists each directory, tries five suffixes for a package and opens the file
through two layers: with it, 40 modules take half of a start (`tests/setup bench launch`).
- A compiled file is read with five system calls.
- Behind its code, in bytes that Python ignores (`marshal.loads` stops before them), it may have a
  bundle: the code of all modules that its module imported, from files or from an earlier bundle.
  They share their strings, and none is searched for. pip, and Python after a change of the source,
  replace or remove the whole file, and so the bundle, too.

The loaded modules are the same. Code is used only if it belongs to this Python and to the current
source (PEP 552: its time and size), in a bundle too. In every other case the finder returns None,
and Python uses its own finders: if there is no compiled file, if it is checked by a hash, in a zip
file, for a module that does not exist.
"""

import marshal
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import CodeType, ModuleType

    Bundle = list[tuple[str, bytes, CodeType]]
    """Name, validity and code of modules, in the order in which they were loaded."""

_PACKAGES = frozenset(
    ("backends", "cli", "config", "doctor", "git", "insight", "integrations", "lifecycle")
    + ("platform", "queue", "supervise")
)
HEADER = 16
"""Bytes before the code in a compiled file (PEP 552): magic number, flags, time and size."""
MARK = b"\xd3sandrun bundle\n"
"""The last bytes of a compiled file with a bundle. Eight bytes before them are its length."""
_WORTH = 3
"""A bundle is written after more modules than that were read from files of their own."""


def validity(source: os.stat_result) -> bytes:
    """What the header of a compiled file has after the magic number if it is of that source, and
    valid by time and size: no flags, and both as 32 bits."""
    numbers = 0, int(source.st_mtime) & 0xFFFFFFFF, source.st_size & 0xFFFFFFFF
    return b"".join(number.to_bytes(4, "little") for number in numbers)


def bundle_start(data: bytes) -> int:
    """Where the bundle in the contents of a compiled file begins; at its end if it has none."""
    if not data.endswith(MARK):
        return len(data)
    end = len(data) - len(MARK) - 8
    return end - int.from_bytes(data[end : end + 8], "little")


def write_bundle(path: str, bundle: "Bundle") -> None:
    """Put a bundle into a compiled file, if it is ours and may be replaced. Its owner and its mode
    stay: our umask may differ from the installer's."""
    if sys.platform == "win32":
        return
    new = f"{path}.{os.urandom(4).hex()}"
    more = marshal.dumps(bundle)
    try:
        with open(path, "rb") as file:
            info, data = os.fstat(file.fileno()), file.read()
        if info.st_uid != os.geteuid():
            return
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError:
        return
    try:
        with open(fd, "wb") as file:
            file.write(data[: bundle_start(data)] + more + len(more).to_bytes(8, "little") + MARK)
            os.fchmod(fd, info.st_mode & 0o7777)
        os.replace(new, path)
    except OSError:
        os.unlink(new)


class _Finder:
    """A finder (importlib.abc.MetaPathFinder) for our modules, which are in the directory `top`."""

    def __init__(self, top: str, magic: bytes) -> None:
        self.top = top
        self.magic = magic
        self.suffix = f".{sys.implementation.cache_tag}.pyc"
        self.depth = 0
        """How many of our modules are being imported, each by the one before it."""
        self.loaded: Bundle = []
        """The modules that the outermost import has loaded so far, from files and bundles."""
        self.files = 0
        """How many of these came from files of their own."""

    def find_spec(self, name: str, *_: object) -> "ModuleSpec | None":
        if not name.startswith("sandrun."):
            return None
        spec = self._spec(name)
        loader = self._read(spec)
        spec.loader = loader  # type: ignore[assignment] # it has what Python calls
        return spec if loader else None

    def _spec(self, name: str) -> "ModuleSpec":
        room, leaf = [*name[8:].split(".", 1), ""][:2]
        is_package = not leaf and room in _PACKAGES
        folder = f"{self.top}/{room}" if leaf or is_package else self.top
        stem = leaf or ("__init__" if is_package else room)
        kind: type[ModuleSpec] = type(sys.__spec__)  # spares importing importlib.machinery
        spec = kind(name, None, origin=f"{folder}/{stem}.py", is_package=is_package)
        if is_package:
            spec.submodule_search_locations = [folder]
        spec.has_location = True
        spec.cached = f"{folder}/__pycache__/{stem}{self.suffix}"
        return spec

    def _read(self, spec: "ModuleSpec") -> "_Loader | None":
        """The contents of a compiled file; None if it does not belong to the current source."""
        assert spec.cached and spec.origin
        try:
            fd = os.open(spec.cached, os.O_RDONLY)
            try:
                data = os.read(fd, os.fstat(fd).st_size)
            finally:
                os.close(fd)
            valid = validity(os.stat(spec.origin))
            if data[:HEADER] != self.magic + valid:
                return None
            loader = _Loader(self, valid, marshal.loads(memoryview(data)[HEADER:]))
            loader.cached = spec.cached
            if data.endswith(MARK):
                loader.bundle = marshal.loads(memoryview(data)[bundle_start(data) :])
        except (OSError, EOFError, TypeError, ValueError):  # not there, or cut short
            return None
        return loader

    def execute(self, module: "ModuleType", loader: "_Loader") -> None:
        self.depth += 1
        self.files += 1
        try:
            self._load_bundle(loader.bundle)
            self._run(module, loader)
            if self.depth == 1 and self.files > _WORTH and not sys.dont_write_bytecode:
                write_bundle(loader.cached, self.loaded[:-1])
        finally:
            self.depth -= 1
            if not self.depth:
                self.loaded, self.files = [], 0

    def _run(self, module: "ModuleType", loader: "_Loader") -> None:
        exec(loader.code, module.__dict__)
        self.loaded.append((module.__name__, loader.valid, loader.code))

    def _load_bundle(self, bundle: "Bundle") -> None:
        """Load the modules of a bundle that are not loaded yet; none of them if one's source has
        changed, or if one's package is neither loaded nor in the bundle."""
        specs = []
        for name, valid, code in bundle:
            if name not in sys.modules:
                spec = self._spec(name)
                spec.loader = _Loader(self, valid, code)  # type: ignore[assignment]
                specs.append(spec)
        known = {spec.name for spec in specs}.union(sys.modules)
        if any(spec.name.rpartition(".")[0] not in known for spec in specs):
            return
        try:
            if any(validity(os.stat(s.origin)) != s.loader.valid for s in specs):  # type: ignore
                return
        except OSError:
            return
        # All exist before the first is executed, since a package may import its own modules.
        create = sys.modules["_frozen_importlib"].module_from_spec
        modules = [create(spec) for spec in specs]
        sys.modules.update((module.__name__, module) for module in modules)
        try:
            while modules:
                self._run(modules[0], modules[0].__loader__)
                module = modules.pop(0)
                room, _, leaf = module.__name__.rpartition(".")
                setattr(sys.modules[room], leaf, module)
        finally:  # if one failed, the code that imports it gets the error
            for module in modules:
                del sys.modules[module.__name__]


class _Site:
    """The last finder, if Python was started without `site` (-S). A module that no other finder has
    found may be in a folder that only `site` adds (by a .pth file, the system's packages), so this
    runs `site` and searches again."""

    def find_spec(self, name: str, *_: object) -> "ModuleSpec | None":
        if "." in name or name in sys.stdlib_module_names:
            return None
        sys.meta_path.remove(self)
        import site

        site.main()
        if site.USER_SITE in sys.path:  # last, so that it shadows nothing
            sys.path.remove(site.USER_SITE)
            sys.path.append(site.USER_SITE)
        found = (finder.find_spec(name, None) for finder in sys.meta_path)
        return next(filter(None, found), None)


class _Loader:
    """A loader (importlib.abc.Loader) of code that has been read."""

    def __init__(self, finder: _Finder, valid: bytes, code: "CodeType") -> None:
        self.finder = finder
        self.valid = valid
        self.code = code
        self.cached = ""
        """The compiled file; '' if the code comes from a bundle."""
        self.bundle: Bundle = []

    def create_module(self, spec: "ModuleSpec") -> None:
        """None: Python creates the module."""

    def exec_module(self, module: "ModuleType") -> None:
        self.finder.execute(module, self)


def install() -> None:
    """Make Python use this finder before its own, where compiled files have their usual names, and
    run `site` before it reports a module as missing."""
    if sys.flags.no_site:
        sys.meta_path.append(_Site())
    magic = getattr(sys.modules.get("_frozen_importlib_external"), "MAGIC_NUMBER", b"")
    usual = sys.implementation.cache_tag and not sys.pycache_prefix and not sys.flags.optimize
    if magic and usual and sys.platform != "win32":
        sys.meta_path.insert(0, _Finder(os.path.dirname(__file__), magic))

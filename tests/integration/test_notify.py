"""The events for the program that started sandrun (SANDRUN_TELL), whether or not it reads them."""

import fcntl
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import ON_MACOS, SCALE, Box, launcher

LONG = "é" * 4000
"""An argument that becomes 24,000 bytes of JSON."""


@pytest.fixture
def pipe() -> "Iterator[tuple[int, int]]":
    """The ends of a pipe of one page."""
    reader, sender = os.pipe()
    fcntl.fcntl(sender, fcntl.F_SETPIPE_SZ, 4096)
    yield reader, sender
    for fd in (reader, sender):
        os.close(fd)


def start(box: Box, sender: int, *words: str) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [*launcher(), *words],
        env={**box.env, "SANDRUN_TELL": str(sender)},
        cwd=box.project,
        pass_fds=[sender],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    box.started.append(process)
    return process


def finish(process: "subprocess.Popen[str]") -> str:
    """What a process that ends with 0 has printed on stderr."""
    said = process.communicate(timeout=60 * SCALE)[1]
    assert process.returncode == 0, said
    return said


def fill(sender: int) -> None:
    """Fill a pipe, of which others have open files too."""
    own = os.open(f"/proc/self/fd/{sender}", os.O_WRONLY | os.O_NONBLOCK)
    with open(own, "wb", buffering=0) as file:  # O_NONBLOCK on `sender` would be sandrun's too
        while file.write(b"\n") is not None:
            pass


def events(text: str) -> "list[str]":
    return [json.loads(line)["event"] for line in text.splitlines() if line]


def test_a_program_that_does_not_read_stops_no_run(box: Box, pipe: "tuple[int, int]") -> None:
    fill(pipe[1])
    said = finish(start(box, pipe[1], "-v", "--", "true"))
    assert said.count("dropped the event 'queued': the pipe of SANDRUN_TELL is full") == 1
    assert said.count("dropped") == 1
    assert not os.read(pipe[0], 8192).strip()
    assert not fcntl.fcntl(pipe[1], fcntl.F_GETFL) & os.O_NONBLOCK


def test_it_holds_no_queue_either(box: Box, pipe: "tuple[int, int]") -> None:
    first = start(box, pipe[1], "--", *box.job("one"))
    box.begun("one")
    fill(pipe[1])
    box.let("one")
    assert box.run("--", "true").returncode == 0
    finish(first)
    assert events(os.read(pipe[0], 8192).decode()) == ["queued"]


def test_a_program_that_reads_again_gets_the_later_events(
    box: Box, pipe: "tuple[int, int]"
) -> None:
    fill(pipe[1])
    run = start(box, pipe[1], "--", *box.job("one"))
    box.begun("one")
    os.read(pipe[0], 8192)
    box.let("one")
    finish(run)
    assert events(os.read(pipe[0], 8192).decode()) == ["ended"]


def test_a_long_line_reaches_a_program_that_reads(box: Box, pipe: "tuple[int, int]") -> None:
    own = os.dup(pipe[0])
    run = start(box, pipe[1], "--", "true", LONG)
    with open(own, "rb") as lines:
        read = [json.loads(lines.readline()) for _ in range(2)]
    assert [(line["event"], line.get("command")) for line in read] == [
        ("queued", None),
        ("ended", ["true", LONG]),
    ]
    finish(run)


@pytest.mark.skipif(ON_MACOS, reason="not on macOS: no /proc")
def test_no_other_writer_of_the_pipe_makes_it_block(box: Box, pipe: "tuple[int, int]") -> None:
    run = start(box, pipe[1], "--", *box.job("one"))
    box.begun("one")
    info = Path(f"/proc/{run.pid}/fdinfo/{pipe[1]}").read_text()
    assert int(info.partition("flags:")[2].split()[0], 8) & os.O_NONBLOCK
    box.let("one")
    finish(run)

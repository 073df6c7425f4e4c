"""What the tests of entry points share: `sandrun` on the PATH of a box, and the make include."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

import sandrun
from tests.harness import Box, launcher

INCLUDE = Path(sandrun.__file__).with_name("integrations") / "sandrun.mk"


def put_on_path(box: Box) -> Path:
    """A directory with a `sandrun`, first on the box's PATH."""
    bin = box.root / "bin"
    bin.mkdir()
    words = " ".join(f"'{word}'" for word in launcher())
    (bin / "sandrun").write_text(f'#!/bin/sh\nexec {words} "$@"\n')
    (bin / "sandrun").chmod(0o755)
    box.env["PATH"] = f"{bin}:{box.env['PATH']}"
    return bin


def makefile(box: Box, text: str, where: str = ".", include: str = "include sandrun.mk") -> None:
    """A Makefile with the include in front of `text`, below the project."""
    directory = box.project / where
    directory.mkdir(exist_ok=True)
    shutil.copy(INCLUDE, directory / "sandrun.mk")
    (directory / "Makefile").write_text(f"{include}\n{text}")


def job_recipe(box: Box, name: str) -> str:
    """The recipe of a job (see `tests.harness`), whose gate is somebody else's to make."""
    script = 'echo "begin $1 $$" >>"$2"; read _ <"$3"; echo "end $1 $$" >>"$2"'
    quoted = script.replace("$", "$$")
    return f"@sh -c '{quoted}' job {name} {box.log} {box.root}/gate-{name}"


def job_goals(box: Box, names: "list[str]") -> str:
    """The text of goals that are jobs, one for each name."""
    for name in names:
        box.job(name)
    return "".join(f"{name}: ; {job_recipe(box, name)}\n.PHONY: {name}\n" for name in names)


def said(text: str) -> "list[str]":
    """The lines of stderr that are not sandrun's."""
    return [line for line in text.splitlines() if not line.startswith("sandrun: ")]


def witnessed(box: Box) -> "list[str]":
    """The names of the jobs in the order in which they ran; AssertionError if two ran at once."""
    events = box.events()
    for (begin, one), (end, other) in zip(events[::2], events[1::2], strict=True):
        assert (begin, end, one) == ("begin", "end", other), events
    return [name for what, name in events if what == "begin"]


def need(*programs: str) -> None:
    """Skip a test, by name, where a program is missing that tests/setup would have installed."""
    for name in programs:
        if not shutil.which(name):
            pytest.skip(f"needs {name}")


PLAIN: "Mapping[str, str]" = {"SANDRUN_MAKE": "off"}

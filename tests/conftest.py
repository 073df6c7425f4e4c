"""Fixtures: `box`, an isolated place to run sandrun in (see `tests.harness`)."""

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness import Box, adopt_orphans

adopt_orphans()


@pytest.fixture
def make_box(tmp_path: Path) -> "Iterator[Callable[[str], Box]]":
    """Makes a box with a backend of the test's choice."""
    boxes: list[Box] = []

    def make(backend: str = "none") -> Box:
        root = tmp_path / f"box{len(boxes)}"
        root.mkdir()
        boxes.append(Box(root, backend))
        return boxes[-1]

    yield make
    for box in boxes:
        box.close()


@pytest.fixture
def open_box() -> Iterator[Box]:
    """A box that other users can enter; needs root, to be two users."""
    if os.geteuid() != 0:
        pytest.skip("needs root: runs as two different users")
    with tempfile.TemporaryDirectory(prefix="sandrun-test-") as scratch:
        os.chmod(scratch, 0o755)
        box = Box(Path(scratch))
        for directory in (box.state, box.home):
            directory.chmod(0o1777)
        yield box
        box.close()


@pytest.fixture
def box(make_box: "Callable[[str], Box]") -> Box:
    """A box whose runs are not contained: cheap, for all that is not about containment."""
    return make_box("none")

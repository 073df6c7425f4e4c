"""Fixtures for tests with real Windows processes."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.windows.box import Box


def _make(root: Path, backend: str) -> Box:
    if sys.platform != "win32":
        pytest.skip("about Windows: runs inside vagrant/wine-lab")
    return Box(root, backend)


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    """A box whose runs are in a job."""
    made = _make(tmp_path, "job-object")
    yield made
    made.close()


@pytest.fixture
def free_box(tmp_path: Path) -> Iterator[Box]:
    """A box whose runs are not contained."""
    made = _make(tmp_path, "none")
    yield made
    made.close()

"""One suite for every backend, on this host and in the laboratory's machines.

The fixture `backend` runs each test on each backend. SANDRUN_EXPECT lists the backends that must
work here, separated by commas (default: rlimit). If one of them does not work, its tests fail; the
tests of any other backend that does not work are skipped with a reason.
"""

import json
import os
import subprocess
from collections.abc import Callable
from functools import cache

import pytest

from tests.harness import ON_MACOS, Box, installed_env, launcher

BACKENDS = ("cgroup2", "systemd", "cgroup1", "rlimit")
KERNEL = ("cgroup2", "systemd", "cgroup1")


@cache
def checks() -> "dict[str, tuple[bool, str]]":
    """The report of `sandrun doctor` on each backend here: (usable, evidence)."""
    answer = subprocess.run(
        [*launcher(), "doctor", "--json"],
        capture_output=True,
        text=True,
        check=False,
        env=installed_env(dict(os.environ)),
    )
    rows = json.loads(answer.stdout)["checks"]
    return {row["name"]: (row["status"] in ("PASS", "CAUTION"), row["evidence"]) for row in rows}


def _need(name: str) -> str:
    if ON_MACOS and name not in checks():
        pytest.skip(f"not on macOS: {name}")
    usable, evidence = checks()[name]
    expected = (os.environ.get("SANDRUN_EXPECT") or "rlimit").split(",")
    if not usable:
        assert name not in expected, f"{name} must work here: {evidence}"
        pytest.skip(f"{name} is not to be had here: {evidence}")
    return name


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """Each backend that works here."""
    return _need(request.param)


@pytest.fixture(params=KERNEL)
def kernel_backend(request: pytest.FixtureRequest) -> str:
    """Each backend that works here and whose limits the kernel enforces."""
    return _need(request.param)


@pytest.fixture
def place(make_box: "Callable[[str], Box]", backend: str) -> Box:
    """A box whose runs use `backend`."""
    return make_box(backend)


@pytest.fixture
def kernel_place(make_box: "Callable[[str], Box]", kernel_backend: str) -> Box:
    """A box whose runs use `kernel_backend`."""
    return make_box(kernel_backend)

"""Settings are what the user asked for: nobody changes them after they were resolved."""

from pathlib import Path

import pytest

from sandrun.config import settings
from sandrun.model import MIB
from sandrun.queue import memory_pool


def test_settings_cannot_be_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    resolved = settings.resolve({"memory": 64 * MIB}, str(tmp_path))
    with pytest.raises(AttributeError, match="immutable"):
        resolved.memory = 1
    assert resolved.memory == 64 * MIB


def test_the_pool_leaves_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    for name in ("MEMORY_LIMIT_MB", "SANDRUN_MEMORY", "SANDRUN_SWAP"):
        monkeypatch.delenv(name, raising=False)
    resolved = settings.resolve({}, str(tmp_path))
    default = resolved.memory
    effective = resolved.with_limits(*memory_pool.effective_limits(resolved, 100 * MIB))
    assert (resolved.memory, effective.memory, effective.swap) == (default, 100 * MIB, 0)
    assert effective.source == resolved.source

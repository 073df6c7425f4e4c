"""Settings never change after they are resolved, and the types of closed sets match the tables."""

from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from sandrun import api, history
from sandrun.config import settings
from sandrun.config.options import OPTIONS
from sandrun.model import EXIT_CODES, MIB
from sandrun.queue import memory_pool
from sandrun.types import Record, Stopped


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


def test_closed_sets_have_the_same_members_as_types_and_in_tables() -> None:
    hints = get_type_hints(api.Settings)
    for option in OPTIONS:
        if option.choices:
            assert get_args(hints[option.key]) == option.choices, option.key
    assert set(get_args(Stopped)) == EXIT_CODES.keys()


def test_a_record_read_from_the_history_has_the_keys_of_its_type() -> None:
    assert history._TYPES.keys() == Record.__annotations__.keys()
    fields = {"id": "0badcafe", "command": ["make"], "wall": "long", "limit": 1.5, "v": 1}
    assert history.checked(fields) == {"id": "0badcafe", "command": ["make"]}
    assert history.checked({"command": ["make", 7], "pid": 3}) == {"pid": 3}

"""Whose memory limit was hit on cgroup v2, in whatever order kernel counts and reads interleave."""

from itertools import combinations_with_replacement

import pytest

from sandrun.backends import cgroup_common, cgroup_files
from sandrun.model import MIB, Limits
from sandrun.platform import processes

READS = 10  # at least as many as one poll makes


class _Files:
    """The events of a run with a nested one. Each figure read is a tick; `when` has the ticks at
    which the kernel counts the `oom`, the kill at its victim in main/, and the kill further up.
    `in_main`: main/ repeats the limit and is where it was hit."""

    when: "tuple[int, ...]" = ()
    in_main = False
    tick = 0

    def __init__(self, node: cgroup_files.Node) -> None:
        self.is_main = node.full_path.endswith(b"/" + cgroup_common.MAIN.encode())

    def has(self, name: str) -> bool:
        return True

    def _happened(self, event: int) -> int:
        _Files.tick += 1
        return int(self.when[event] < self.tick)

    @property
    def memory_events(self) -> "dict[str, int]":
        return {"oom": self._happened(0), "oom_kill": self._happened(2)}

    @property
    def memory_events_local(self) -> "dict[str, int]":
        oom = self._happened(0) if self.is_main == self.in_main else 0
        return {"oom": oom, "oom_kill": self._happened(1) if self.is_main else 0}


# main/ has the lowest enclosing limit, so that is hit first; its value tells whose it is.
@pytest.mark.parametrize(
    ("whose", "in_main", "lowest"),
    [("own", False, 64), ("outer", False, 64), ("own", True, 64), ("outer", True, 32)],
)
def test_whose_limit_was_hit(
    whose: str, in_main: bool, lowest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sandrun.backends import cgroup2  # needs cgroupspy, which only Linux has

    monkeypatch.setattr(cgroup2, "Files", _Files)
    monkeypatch.setattr(_Files, "in_main", in_main)
    never = 1 << 30
    for oom, *kills in combinations_with_replacement(range(READS), 3):
        hit = whose == "own" or in_main
        _Files.when, _Files.tick = (oom if hit else never, *kills), 0
        container = cgroup2.Group2("/sys/fs/cgroup/sandrun-0", Limits(64 * MIB))
        container.sampler.limit = lowest * MIB
        container._check_oom()
        assert container.limit_hit in ("", whose), _Files.when
        _Files.tick = READS
        container._check_oom()
        assert container.limit_hit == whose, _Files.when


class _Spinning:
    """The limit is hit before each of the first `hits` polls, and the kernel kills no process."""

    hits = 0
    events = 0

    def __init__(self, node: cgroup_files.Node) -> None:
        self.is_main = node.full_path.endswith(b"/" + cgroup_common.MAIN.encode())

    def has(self, name: str) -> bool:
        return True

    @property
    def memory_events(self) -> "dict[str, int]":
        _Spinning.events = min(_Spinning.events + 1, self.hits)
        return {"oom": self.events, "oom_kill": 0}

    @property
    def memory_events_local(self) -> "dict[str, int]":
        return {"oom": self.events if self.is_main else 0, "oom_kill": 0}


@pytest.mark.parametrize(("hits", "whose"), [(1, ""), (1000, "own")])
def test_a_limit_at_which_the_kernel_kills_no_process(
    hits: int, whose: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After one hit another process freed memory. After many no process may be killed."""
    from sandrun.backends import cgroup2

    monkeypatch.setattr(cgroup2, "Files", _Spinning)
    monkeypatch.setattr(processes, "is_oom_protected", lambda pid: False)
    monkeypatch.setattr(_Spinning, "hits", hits)
    monkeypatch.setattr(_Spinning, "events", 0)
    container = cgroup2.Group2("/sys/fs/cgroup/sandrun-0", Limits(64 * MIB))
    for _ in range(10):
        container._check_oom()
    assert container.limit_hit == whose

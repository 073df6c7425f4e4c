"""What is noted on the way to the limit."""

from sandrun.model import MIB
from sandrun.sampling import Sampler


def test_a_look_into_the_kill_changes_nothing() -> None:
    sampler = Sampler(96 * MIB)
    for anon, cache, shmem in ((50, 8, 6), (90, 5, 5), (25, 0, 0)):
        sampler.note(anon * MIB, cache * MIB, shmem * MIB)
    assert sampler.kinds == {"anon": 90 * MIB, "file": 0, "shmem": 5 * MIB}


def test_shared_memory_is_no_page_cache() -> None:
    sampler = Sampler(96 * MIB)
    sampler.note(MIB, 20 * MIB, 12 * MIB)
    assert sampler.kinds == {"anon": MIB, "file": 8 * MIB, "shmem": 12 * MIB}
    sampler.note(MIB, 20 * MIB, 21 * MIB)  # read while it changes
    assert sampler.kinds["file"] == 0

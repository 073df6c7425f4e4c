"""Tickets as files: names, what is dead, what is swept."""

import os
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given

from sandrun.model import command_text
from sandrun.queue import Queue, StateGone, Ticket, ticket_text


@given(st.lists(st.text(min_size=0, max_size=60), min_size=1, max_size=4))
def test_any_command_fits_into_a_name_and_is_shown_on_one_line(words: "list[str]") -> None:
    text = ticket_text([word.replace("\0", "") for word in words])
    assert text.isprintable()
    assert len(os.fsencode(text)) <= 3 * 160


@given(st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=126), max_size=50))
def test_short_plain_commands_are_shown_as_they_are(word: str) -> None:
    assert ticket_text([word]) == command_text([word])


def test_names_stay_within_what_a_file_system_takes(tmp_path: Path) -> None:
    queue = Queue(str(tmp_path / "state"))
    for word in ("x" * 1000, "/" * 1000, "é" * 1000, "\n%." * 300):
        ticket = queue.enqueue("0" * 8, [word], -(10**6))
        assert len(os.fsencode(ticket.name)) <= 255
        assert Ticket(ticket.name).command == ticket_text([word])
        queue.leave(ticket)


def test_a_ticket_without_its_lock_is_dead_and_removed(tmp_path: Path) -> None:
    queue = Queue(str(tmp_path))
    ticket = queue.enqueue("0" * 8, ["job"])
    assert [t.id for t in queue.tickets()] == ["0" * 8]
    ticket.close()
    assert queue.tickets() == []
    assert queue.names() == []


def test_a_half_made_ticket_is_swept_and_a_live_one_is_not(tmp_path: Path) -> None:
    queue = Queue(str(tmp_path))
    os.mkfifo(tmp_path / ".deadbeef")
    (tmp_path / ".view.1").touch()
    ticket = queue.enqueue("0" * 8, ["job"])
    queue.sweep()
    assert os.listdir(tmp_path) == [ticket.name]


def test_the_queue_file_is_rewritten_whatever_a_process_of_the_same_pid_left(
    tmp_path: Path,
) -> None:
    """Such as a file of root's, which we may not open; here a directory."""
    (tmp_path / f".view.{os.getpid()}").mkdir()
    queue = Queue(str(tmp_path))
    queue.enqueue("0" * 8, ["job"])
    queue.publish_queue_file()
    assert (tmp_path / "queue.txt").read_text().endswith(":job\n")


def test_a_sweep_between_making_and_locking_does_not_lose_the_newcomer(tmp_path: Path) -> None:
    """It takes the file for a dead one; the newcomer makes another."""
    queue = Queue(str(tmp_path))
    swept: list[str] = []
    real = os.open

    def open_after_sweep(path: str, flags: int, *args: int, dir_fd: "int | None" = None) -> int:
        fd = real(path, flags, *args, dir_fd=dir_fd)
        if path == ".00000000" and not swept:
            swept.append(path)
            Queue(str(tmp_path)).sweep()
        return fd

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", open_after_sweep)
        ticket = queue.enqueue("0" * 8, ["job"])
    assert swept
    assert [t.id for t in queue.tickets()] == ["0" * 8]
    queue.leave(ticket)


def test_a_removed_directory_is_noticed(tmp_path: Path) -> None:
    state = tmp_path / "state"
    queue = Queue(str(state))
    ticket = queue.enqueue("0" * 8, ["job"])
    (state / ticket.name).unlink()
    with pytest.raises(StateGone):
        queue.ahead(ticket)
    state.rmdir()
    with pytest.raises(StateGone):
        queue.enqueue("1" * 8, ["job"])


def test_a_kept_place_can_be_claimed_once(tmp_path: Path) -> None:
    queue = Queue(str(tmp_path))
    ticket = queue.enqueue("0" * 8, ["job"], 5)
    queue.keep_place(ticket, "me")
    assert queue.claim_place("other", 5) == 0
    assert queue.claim_place("me", 5) == ticket.key
    assert queue.claim_place("me", 5) == 0
    queue.keep_place(ticket, "me")
    assert queue.claim_place("me", 6) == 0, "another head start: another place"


FOREIGN = [
    f"w{'1' * 20}.0badcafe.later.1.0.job",  # a field that is no number
    f"r{'1' * 20}.0badcafe.1.1.0",  # a field less
    f"w{'1' * 20}.0badcafe0badcafe.1.1.0.job",  # a longer id
    f"w{'²' * 20}.0badcafe.1.1.0.job",  # digits that are no number
    f"w{'1' * 20}.0badcafe.1.1.--5.job",
    "t2.something",
    ".later-version",
    "around.later-version",
    "kept.later-version",
]


def test_what_another_version_left_is_skipped_and_kept(tmp_path: Path) -> None:
    for name in FOREIGN:
        (tmp_path / name).touch()
    queue = Queue(str(tmp_path))
    ticket = queue.enqueue("0" * 8, ["job"])
    queue.sweep()
    assert queue.ahead(ticket, new=True) == []
    assert [t.id for t in queue.tickets()] == ["0" * 8]
    queue.mark(ticket, running=True)
    queue.publish_queue_file()
    queue.notify_waiters()
    queue.leave(ticket)
    assert set(FOREIGN) <= set(os.listdir(tmp_path))

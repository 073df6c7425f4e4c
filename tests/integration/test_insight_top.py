"""`sandrun top` with real runs and waiters: its keys by Textual's driver, and its snapshots.

`test_insight_top_terminal` tests it on a terminal, `test_insight_top_look` its pictures.
"""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from textual.pilot import Pilot

from sandrun.insight.live import ReadingQueue, Snapshot, Watch
from sandrun.insight.top.app import Top
from sandrun.insight.top.dialogs import Page, Question
from sandrun.queue import Queue
from tests.harness import SCALE, Box, wait_for

ENV = ("HOME", "XDG_STATE_HOME", "XDG_CONFIG_HOME", "SANDRUN_STATE_DIR")
Steps = Callable[[Pilot[int], Top], Awaitable[None]]


@pytest.fixture
def here(box: Box, monkeypatch: pytest.MonkeyPatch) -> Box:
    """A box whose queues this process sees as its own."""
    for name in ENV:
        monkeypatch.setenv(name, box.env[name])
    return box


def drive(box: Box, steps: Steps, size: "tuple[int, int]" = (100, 30)) -> None:
    """Show the box's queues, and do `steps`."""

    async def run() -> None:
        app = Top(Watch((str(box.project), "")).take, 8 << 30, 1.0, False)
        async with app.run_test(size=size) as pilot:
            await steps(pilot, app)

    asyncio.run(run())


async def until(pilot: "Pilot[int]", condition: "Callable[[], object]", what: str) -> None:
    deadline = time.monotonic() + 20 * SCALE
    while not condition():
        assert time.monotonic() < deadline, what
        await pilot.pause(0.05)


def screen(app: Top) -> str:
    """The text on the screen."""
    lines = app.screen._compositor.render_strips()
    return "\n".join(strip.text for strip in lines)


def shows(app: Top, text: str) -> "Callable[[], bool]":
    return lambda: text in screen(app)


def snapshot(box: Box) -> Snapshot:
    return Watch((str(box.project), "")).take()


def test_a_snapshot_has_runs_waiters_and_the_pool(here: Box) -> None:
    here.env["SANDRUN_BACKEND"] = "auto"
    here.hold("one", "-m", "200M")
    here.queue_up("two")
    here.queue_up("three", "--priority", "low")
    watch = Watch((str(here.project), ""))

    def is_measured() -> bool:
        figures = watch.take().queues[0].row(0).figures
        return figures is not None and bool(figures.memory)

    wait_for(is_measured, 20)
    found = watch.take()
    (queue,) = found.queues
    assert (queue.title, queue.paused, queue.running) == (str(here.project), False, 1)
    run, second, third = map(queue.row, range(3))
    assert run.figures and run.figures.limit == 200 << 20
    assert run.cwd == second.cwd == str(here.project)
    assert [row.position for row in (run, second, third)] == [1, 2, 3]
    assert third.ticket.extra == -3600
    (pool,) = found.pools
    assert [(t.id, t.extra, t.running) for t in pool.tickets] == [(run.id, 200 << 20, True)]
    assert pool.reserved() == 200 << 20


def test_the_expected_start_is_what_the_waiters_report(here: Box) -> None:
    task = here.project / "task"
    task.write_text("#!/bin/sh\nsleep 0.5\nwhile [ -e hold ]; do sleep 0.05; done\n")
    task.chmod(0o755)
    here.run("--", "./task")
    wall = here.records()[0]["wall"]
    assert isinstance(wall, float)
    (here.project / "hold").touch()
    runs = [here.start("--", "./task")]
    wait_for(lambda: len(here.view()) == 1, 20)
    runs += [here.start("--", "./task")]
    wait_for(lambda: len(here.view()) == 2, 20)
    runs += [here.start("--", "./task")]
    wait_for(lambda: "to go" in here.heard(runs[2]), 20)
    found = snapshot(here).queues[0]
    first, second = found.row(1).starts_in, found.row(2).starts_in
    assert first is not None and second is not None
    assert 0 <= first <= wall
    assert abs(second - first - wall) < 0.01
    assert here.run("pause").returncode == 0
    assert [snapshot(here).queues[0].row(at).starts_in for at in (1, 2)] == [None, None]


def test_a_snapshot_changes_nothing(here: Box) -> None:
    """Not even dead tickets go, and nobody is woken up."""
    here.hold("one")
    dead = here.queue_up("two")
    dead.kill()
    dead.wait()
    (state,) = here.directories()
    before = {path.name: path.lstat().st_mtime_ns for path in state.iterdir()}
    assert any(f".{dead.pid}." in name for name in before)
    changed = state.stat().st_mtime_ns
    watch = Watch()
    for _ in range(3):
        assert [len(queue.tickets) for queue in watch.take().queues] == [1]
    assert {path.name: path.lstat().st_mtime_ns for path in state.iterdir()} == before
    assert state.stat().st_mtime_ns == changed


def test_a_change_is_seen_at_once_and_an_end_too(here: Box) -> None:
    watch = Watch()
    assert watch.take().queues == []
    run = here.hold("one")
    for number in range(2, 6):
        here.queue_up(f"job{number}")
        assert [len(queue.tickets) for queue in watch.take().queues] == [number]
    run.kill()
    wait_for(lambda: run.pid not in [t.pid for q in watch.take().queues for t in q.tickets], 20)
    # Many changes within the resolution of the directory's time.
    queue = Queue(str(here.directories()[0]))
    tickets = []
    for number in range(50):
        tickets.append(queue.enqueue(f"{number:08x}", ["make"]))
        assert f"{number:08x}" in [t.id for q in watch.take().queues for t in q.tickets]
    for ticket in tickets:
        queue.leave(ticket)
        assert ticket.id not in [t.id for q in watch.take().queues for t in q.tickets]


def test_a_holder_of_the_lock_without_a_ticket_is_named(here: Box) -> None:
    """As of another user, or here with another state directory."""
    subprocess.run(["git", "init", "-q", str(here.project)], check=True)
    elsewhere = here.root / "elsewhere"
    elsewhere.mkdir()
    here.hold("one", env={"SANDRUN_STATE_DIR": str(elsewhere)})
    here.start("--", *here.job("two"))
    wait_for(lambda: "held: " in "".join(queue.note for queue in snapshot(here).queues), 20)
    assert "sandrun.lock by " in snapshot(here).queues[0].note


def test_a_state_directory_that_comes_and_goes(here: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANDRUN_STATE_DIR", str(here.state / "later"))
    watch = Watch((str(here.project), ""))
    assert watch.take() == Snapshot([], [])
    here.env["SANDRUN_STATE_DIR"] = str(here.state / "later")
    (here.state / "later").mkdir()
    here.start("--", "sleep", "60")
    wait_for(lambda: watch.take().queues, 20)
    shutil.rmtree(here.state / "later")
    assert watch.take() == Snapshot([], [])


def test_a_quiet_queue_is_not_listed_again(here: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """And of many waiters only some are examined each time: a snapshot every second is cheap."""
    here.hold("one")
    queue = Queue(str(here.directories()[0]))
    tickets = [queue.enqueue(f"{n:08x}", ["make"]) for n in range(300)]
    listed: list[int] = []
    opened: list[int] = []
    for name, seen in (("names", listed), ("is_live", opened)):
        real = getattr(ReadingQueue, name)
        monkeypatch.setattr(
            ReadingQueue, name, lambda *args, real=real, seen=seen: seen.append(1) or real(*args)
        )
    try:
        watch = Watch()

        def is_quiet() -> bool:
            listed.clear()
            watch.take()
            return not listed

        wait_for(is_quiet, 20)
        opened.clear()
        found = watch.take()
        assert [len(queue.tickets) for queue in found.queues] == [301]
        assert 1 <= len(opened) <= 51
        assert not listed
    finally:
        for ticket in tickets:
            queue.leave(ticket)


def test_stopped_runs_and_waiters_and_a_paused_queue(here: Box) -> None:
    here.hold("one")
    waiter = here.queue_up("two")
    waiter.send_signal(signal.SIGSTOP)
    wait_for(lambda: snapshot(here).queues[0].row(1).stopped == waiter.pid, 20)
    here.run("pause")
    assert snapshot(here).queues[0].paused
    waiter.send_signal(signal.SIGCONT)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: runs as two different users")
def test_root_sees_the_queues_of_others_and_does_not_touch_them(
    open_box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ENV:
        monkeypatch.setenv(name, open_box.env[name])
    open_box.project.chmod(0o777)
    open_box.log.chmod(0o666)
    run = open_box.start("--", "sleep", "60", user=65534)
    wait_for(lambda: [q for q in Watch().take().queues if q.running], 20, "the run of nobody")
    (queue,) = Watch().take().queues
    assert queue.uid == 65534

    async def steps(pilot: "Pilot[int]", app: Top) -> None:
        await until(pilot, shows(app, "sleep 60"), "the run is shown")
        await pilot.press("p")
        await until(pilot, shows(app, "belongs to another user"), "the refusal")
        await pilot.press("k", "y")
        await until(pilot, shows(app, "sudo -u USER sandrun kill"), "the refusal to kill")

    drive(open_box, steps)
    assert run.poll() is None


def test_keys_cancel_move_and_pause(here: Box) -> None:
    here.hold("one")
    second, third = here.queue_up("two"), here.queue_up("three")

    async def steps(pilot: "Pilot[int]", app: Top) -> None:
        await until(pilot, shows(app, "wait 3"), "both waiters")
        await pilot.press("end", "plus")
        await until(pilot, shows(app, "position 2 of 3"), "the move")
        assert list(here.ids()) == ["one", "three", "two"]
        await pilot.press("c")
        await until(pilot, shows(app, "cancelled"), "the cancellation")
        await pilot.press("p")
        await until(pilot, shows(app, "PAUSED"), "the pause")
        await pilot.press("down", "p")
        await until(pilot, lambda: not shows(app, "PAUSED")(), "the end of the pause")

    drive(here, steps)
    assert here.finish(third).returncode == 75
    assert second.poll() is None


def test_kill_asks_and_no_is_no(here: Box) -> None:
    run = here.hold("one")
    here.queue_up("two")

    async def steps(pilot: "Pilot[int]", app: Top) -> None:
        await until(pilot, shows(app, "wait 2"), "the waiter")
        for answer in ("n", "escape", "enter", "q"):
            await pilot.press("k")
            assert isinstance(app.screen, Question)
            await pilot.press(answer)
            assert app.screen is app.screen_stack[0]
        assert run.poll() is None
        await pilot.press("k", "y")
        await until(pilot, shows(app, "ended run"), "the answer")

    drive(here, steps)
    assert here.finish(run).returncode == 143
    here.begun("two")


def test_a_key_never_hits_the_run_that_took_the_line(here: Box) -> None:
    """The selected run ends while the user looks: until a move, no key does anything."""
    here.hold("one")
    second, third = here.queue_up("two"), here.queue_up("three")

    async def steps(pilot: "Pilot[int]", app: Top) -> None:
        await until(pilot, shows(app, "wait 3"), "both waiters")
        await pilot.press("down")
        here.run("queue", "cancel", here.ids()["two"])
        await until(pilot, lambda: not shows(app, "wait 3")(), "the end of the selected one")
        for key in ("c", "plus", "k", "p"):
            await pilot.press(key)
            await until(pilot, shows(app, "the selected run is over"), key)
        await pilot.press("down", "c")
        await until(pilot, shows(app, "cancelled"), "the next one after a move")

    drive(here, steps)
    assert (here.finish(second).returncode, here.finish(third).returncode) == (75, 75)


def test_the_answer_concerns_the_run_that_was_asked_about(here: Box) -> None:
    """It ends while the question is on the screen, and another run has its line."""
    here.hold("one")
    second = here.queue_up("two")

    async def steps(pilot: "Pilot[int]", app: Top) -> None:
        await until(pilot, shows(app, "wait 2"), "the waiter")
        await pilot.press("k")
        here.let("one")
        here.begun("two")
        await until(pilot, lambda: app.board.selection() is None, "the end of the first is seen")
        await pilot.press("y")
        await until(pilot, shows(app, "is over"), "the answer")

    drive(here, steps)
    here.let("two")
    assert here.finish(second).returncode == 0


def test_filter_log_and_help(here: Box) -> None:
    here.hold("one")
    here.queue_up("two")

    async def steps(pilot: "Pilot[int]", app: Top) -> None:
        await until(pilot, shows(app, "wait 2"), "the waiter")
        await pilot.press("slash", *"job two", "enter")
        await until(pilot, lambda: "job one" not in screen(app), "the filter")
        assert "filter: job two" in screen(app)
        await until(pilot, shows(app, "is over, or the filter hides it"), "why none is selected")
        await pilot.press("escape")
        await until(pilot, shows(app, "job one"), "the end of the filter")
        await pilot.press("question_mark")
        await until(pilot, shows(app, "cancel the selected waiter"), "the help")
        await pilot.press("escape", "home", "l")
        await until(pilot, shows(app, f"run {here.ids()['one']}: sh -c"), "the log")
        await pilot.press("escape")
        assert app.screen is app.screen_stack[0]
        here.let("one")
        await until(pilot, shows(app, "the selected run is over"), "its end")
        await pilot.press("l")
        await until(pilot, shows(app, f"run {here.records()[0]['id']}: sh -c"), "its log")
        assert isinstance(app.screen, Page)

    drive(here, steps)


def test_a_long_queue_hides_no_other(here: Box) -> None:
    here.hold("one")
    other = here.root / "aaa"  # the caller's own queue comes first
    other.mkdir()
    here.start("--", *here.job("other"), cwd=other)
    here.begun("other")
    (row,) = json.loads(here.run("status", "--json", cwd=other).stdout)["queues"][0]["runs"]
    (path,) = [path for path in here.directories() if "job one" in (path / "queue.txt").read_text()]
    queue = Queue(str(path))
    tickets = [queue.enqueue(f"{n:08x}", ["make", f"PART={n}"]) for n in range(100)]

    async def steps(pilot: "Pilot[int]", app: Top) -> None:
        await until(pilot, shows(app, "95 more wait"), "the fold")
        assert "job other" in screen(app) and "PART=5" not in screen(app)
        await pilot.press("tab")
        await until(pilot, lambda: app.board.selected == row["id"], "the other")
        await pilot.press("space", "shift+tab", "pagedown", "pagedown")
        await until(pilot, shows(app, "PART=25"), "all waiters")

    try:
        drive(here, steps, (200, 30))
    finally:
        for ticket in tickets:
            queue.leave(ticket)


def test_a_thousand_waiters(here: Box) -> None:
    """Each key takes a moment only, and only what is on the screen is rendered."""
    here.hold("one")
    queue = Queue(str(here.directories()[0]))
    tickets = [queue.enqueue(f"{n:08x}", ["make", f"PART={n}"]) for n in range(1000)]

    async def steps(pilot: "Pilot[int]", app: Top) -> None:
        await until(pilot, shows(app, "1000 waiting"), "all waiters")
        await pilot.press("end")
        await until(pilot, shows(app, "PART=999"), "the last one")
        assert "PART=900" not in screen(app)
        await pilot.press("pageup", "pageup", "home")
        await until(pilot, shows(app, "wait 2 "), "the first ones")
        await pilot.press("slash", *"PART=777", "enter")
        await until(pilot, shows(app, "wait 779"), "the found one")

    try:
        drive(here, steps, (80, 24))
    finally:
        for ticket in tickets:
            queue.leave(ticket)


@pytest.mark.parametrize("kind", ["file", "fifo", "unreadable", "garbage"])
def test_odd_things_among_the_queues(here: Box, kind: str) -> None:
    here.hold("one")
    odd = Path(here.state / f"seq-exec-00000000-{os.geteuid()}")
    if kind == "file":
        odd.touch()
    elif kind == "fifo":
        os.mkfifo(odd)
    else:
        odd.mkdir(mode=0o700)
        (odd / "w.x.y").touch()
        (odd / "executor.lock").write_bytes(os.urandom(3000))
        if kind == "unreadable":
            odd.chmod(0o777)
    queues = snapshot(here).queues
    assert [t.command for q in queues for t in q.tickets] == [here.status()[0]["command"]]

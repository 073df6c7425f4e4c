"""`sandrun status --watch`: on a terminal, and in a pipe."""

import json
import os
import signal

from tests.harness import Box, launcher, wait_for


def lines(box: Box, name: str) -> "list[str]":
    return (box.root / name).read_text().splitlines()


def test_json_prints_a_document_for_each_change(box: Box) -> None:
    box.hold("one")
    out = box.root / "out"
    words = ["sh", "-c", 'exec "$@" >"$0"', str(out)]
    watch = box.start("status", "--json", "--watch", "--interval", "0.1", argv=words + launcher())
    wait_for(lambda: out.exists() and len(lines(box, "out")) == 1, 20)
    box.queue_up("two")
    wait_for(lambda: len(lines(box, "out")) >= 2, 20)
    found = [json.loads(line) for line in lines(box, "out")]
    assert [len(answer["queues"][0]["runs"]) for answer in found][:1] == [1]
    assert len(found[-1]["queues"][0]["runs"]) == 2
    assert all(answer["v"] == 1 for answer in found)
    assert found[0].keys() == json.loads(box.run("status", "--json").stdout).keys()
    watch.send_signal(signal.SIGINT)
    assert box.finish(watch).returncode == -signal.SIGINT
    assert box.heard(watch) == ""


def test_a_pipe_gets_nothing_while_nothing_changes(box: Box) -> None:
    box.hold("one")
    watch = box.start("status", "--watch", "--interval", "0.1")
    assert watch.stdout
    assert watch.stdout.readline().startswith("queue ")
    assert "job one" in watch.stdout.readline()
    second = box.queue_up("two")
    for _ in range(3):
        line = watch.stdout.readline()
    assert "job two" in line
    second.terminate()
    assert watch.stdout.readline().startswith("queue ")
    watch.send_signal(signal.SIGINT)
    assert box.finish(watch).returncode == -signal.SIGINT


def test_a_watch_disturbs_no_queue(box: Box) -> None:
    """It publishes nothing and takes no lock."""
    box.run("--", "true")
    (state,) = box.directories()
    (state / "queue.txt").write_text("untouched")
    watch = box.start("status", "--watch", "--interval", "0.1")
    assert watch.stdout
    watch.stdout.readline()
    os.utime(state)
    watch.send_signal(signal.SIGINT)
    assert box.finish(watch).returncode == -signal.SIGINT
    assert (state / "queue.txt").read_text() == "untouched"


def test_a_bad_interval_is_one_line(box: Box) -> None:
    for value in ("0", "-1", "x", "1e9", "nan"):
        done = box.run("status", "--watch", "--interval", value)
        assert done.returncode == 125
        assert len(done.stderr.splitlines()) <= 2
        assert "internal error" not in done.stderr


def test_the_reader_of_a_pipe_may_go_away(box: Box) -> None:
    box.hold("one")
    watch = box.start("status", "--watch", "--json", "--interval", "0.1")
    assert watch.stdout
    watch.stdout.readline()
    watch.stdout.close()
    box.queue_up("two")
    watch.wait(20)
    assert watch.returncode == -signal.SIGPIPE
    watch.stdout = None

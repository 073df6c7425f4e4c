"""`sandrun report`: the file, what is in it, and what it is about."""

import json
import os
import re
import stat
import time
from collections.abc import Callable
from pathlib import Path

import html5lib
import pytest

from sandrun.insight.report import output, page
from sandrun.model import SandrunError
from tests.harness import Box, launcher, wait_for
from tests.harness.past_runs import HOSTILE, write

SECTIONS = ("Summary", "Timeline", "Memory", "Worst runs", "Trends", "Hours lost", "All runs")


def state(box: Box) -> Path:
    return box.home / "state/sandrun"


def report(box: Box, *options: "str | Path") -> str:
    """The page that `sandrun report OPTIONS` writes."""
    file = box.root / "report.html"
    done = box.run("report", "--html", file, *options, seconds=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{file}\n", "")
    return file.read_text()


def test_the_page_of_real_runs(make_box: "Callable[[str], Box]") -> None:
    box = make_box("rlimit")
    running = box.hold("first")
    waiting = box.queue_up("second")
    box.let_all(["first", "second"])
    box.finish(running)
    box.finish(waiting)
    box.run("--", "sh", "-c", "sleep 2; exit 3")
    text = report(box)
    assert all(f">{name}</h2>" in text for name in SECTIONS)
    assert "<b>3</b>" in text and "exit 3" in text and "sleep 2" in text
    records = box.records()
    assert all(str(record["id"]) in text for record in records)
    assert text.count('<path class="bound"') + text.count("far above") >= 1  # it has samples


def test_the_page_says_who_waited_for_whom(box: Box) -> None:
    running = box.hold("first")
    waiting = box.queue_up("second")
    since = time.monotonic()
    wait_for(lambda: time.monotonic() - since > 1.5, 10)
    box.let_all(["first", "second"])
    box.finish(running)
    box.finish(waiting)
    (record,) = [record for record in box.records() if record.get("waited_for")]
    text = report(box)
    assert "Who waited for whom" in text and 'class="wait"' in text
    assert re.search(r"<br>[0-9.]+ s for <a href=\"#r\d\">sh -c", text), record


def test_without_a_file_it_is_beside_the_history_and_only_for_its_owner(box: Box) -> None:
    done = box.run("report")
    file = state(box) / "report.html"
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{file}\n", "")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(state(box).stat().st_mode) == 0o700
    assert "No such run is recorded" in file.read_text()


def test_a_dash_is_standard_output_in_utf_8(box: Box) -> None:
    write(state(box), 3, hostile=True)
    done = box.run("report", "--html", "-", env={"LC_ALL": "C", "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.startswith("<!doctype html>") and done.stdout.endswith("</html>\n")
    assert not list(box.project.iterdir())


@pytest.mark.parametrize("runs", [0, 1, 3, 200])
@pytest.mark.parametrize("hostile", [False, True])
def test_the_page_is_html(box: Box, runs: int, hostile: bool) -> None:
    write(state(box), runs, hostile)
    text = report(box)
    parser = html5lib.HTMLParser(namespaceHTMLElements=False)
    tree = parser.parse(text)
    assert parser.errors == []
    names = {str(element.tag) for element in tree.iter() if isinstance(element.tag, str)}
    assert names.isdisjoint({"script", "img", "link", "iframe", "object", "b" * 2})
    attributes = {str(name) for element in tree.iter() for name in element.attrib}
    assert not any(name.startswith("on") for name in attributes)
    targets = {element.get("href") for element in tree.iter() if element.get("href")}
    ids = [element.get("id") for element in tree.iter() if element.get("id")]
    assert all(target[0] == "#" and target[1:] in ids for target in targets)
    assert len(ids) == len(set(ids))


def test_texts_are_shown_and_never_interpreted(box: Box) -> None:
    write(state(box), len(HOSTILE), hostile=True)
    text = report(box)
    assert "&lt;/script&gt;&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "\\x1b[31mred" in text.replace("&#x27;", "'")
    assert "\\xff\\x80bytes" in text
    assert text.isprintable() or all(c.isprintable() or c == "\n" for c in text)


def test_a_limit_that_was_hit_says_what_used_the_memory(box: Box) -> None:
    write(state(box), 60)
    text = report(box)
    assert "its own memory limit was reached after" in text
    assert "; most memory: make -j8 2.0 GiB" in text and 'class="event hit"' in text


def test_samples_of_every_shape_are_survived(box: Box) -> None:
    write(state(box), 3)
    odd = [
        {"t": 1, "event": "limit", "top": [1, {}, {"command": 5, "memory": "x"}, {"memory": 7}]},
        {"t": 1e17, "event": "later<b>", "top": {"a": 1}, "x": "</script>"},
        *([1e17, 1 << 59, 0, 0, 0], [5, 0, None, None, None], [1], {"t": -1, "event": "limit"}),
    ]
    for file in (state(box) / "runs").iterdir():
        with open(file, "a") as samples:
            samples.writelines(json.dumps(value) + "\n" for value in odd)
            samples.write("{torn")
    parser = html5lib.HTMLParser()
    text = report(box)
    parser.parse(text)
    assert parser.errors == [] and "later&lt;b&gt;" in text and "</script>" not in text


def test_a_thousand_runs_stay_below_two_megabytes(box: Box) -> None:
    write(state(box), 1000, hostile=True)
    text = report(box)
    assert len(text.encode()) < 2_000_000
    assert text.count("<tr id=") == 1000
    assert text.count('<figure id="c') == 1000


def test_a_thousand_of_the_longest_command_lines_stay_below_it_too(box: Box) -> None:
    write(state(box), 1000)
    lines = []
    for number, line in enumerate((state(box) / "history.jsonl").read_text().splitlines()):
        record = json.loads(line)
        record["command"] = [f"\U0010ffff{number}&<" * 500]
        record["project"] = "/" + f"<{number}>" * 300
        lines.append(json.dumps(record) + "\n")
    (state(box) / "history.jsonl").write_text("".join(lines))
    text = report(box)
    assert len(text.encode()) < 2_000_000
    assert text.count("<tr id=") == 1000


def test_a_longer_history_is_summed_whole_and_drawn_in_part(box: Box) -> None:
    write(state(box), 1500, samples=False)
    text = report(box)
    assert "1,500 runs" in text and "the newest 1,000" in text
    assert text.count("<tr id=") == 1000
    assert report(box, "--runs", "20").count("<tr id=") == 20


def test_the_filters_are_those_of_the_history(box: Box) -> None:
    write(state(box), 50, samples=False)
    box.run("--", "true")
    box.run("--", "false")
    assert "<p>1 run " in report(box, "--since", "1h", "--failed")
    assert "<p>2 runs" in report(box, "--since", "yesterday", "--until", "2100-01-01")
    assert "<p>50 runs," in report(box, "--until", "2022-01-01")
    assert "<p>2 runs" in report(box, "--project", box.project)
    assert "<p>1 run " in report(box, "--command", "tru")
    assert "started since" in report(box, "--since", "2w")


@pytest.mark.parametrize("word", ["soon", "-3d", "nanw", "2026-13-01", ""])
def test_a_time_that_is_none_is_explained(box: Box, word: str) -> None:
    done = box.run("report", "--since", word)
    assert done.returncode == 125 and "2026-11-30" in done.stderr
    assert len(done.stderr.splitlines()) <= 2


def refused(box: Box, *words: "str | Path", what: str) -> None:
    done = box.run("report", "--html", *words)
    assert done.returncode == 125 and done.stdout == ""
    said, hint = done.stderr.splitlines()
    assert what in said and hint.startswith("sandrun: hint: ")


def test_only_a_regular_file_is_replaced(box: Box) -> None:
    os.mkfifo(box.project / "pipe")
    os.symlink("pipe", box.project / "link")
    os.symlink("loop", box.project / "loop")
    refused(box, ".", what="cannot write .: it is a directory")
    refused(box, "pipe", what="cannot write pipe: it is not a regular file")
    refused(box, "link", what="it is not a regular file")
    refused(box, "loop", what="symbolic link")
    refused(box, "/dev/null", what="it is not a regular file")
    refused(box, "none/report.html", what="No such file")
    refused(box, "none/", what="No such file")
    refused(box, "", what="No such file")
    refused(box, "n" * 300, what="name too long")
    assert sorted(entry.name for entry in box.project.iterdir()) == ["link", "loop", "pipe"]
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_a_link_is_followed_and_the_mode_is_private(box: Box) -> None:
    (box.project / "there").mkdir()
    (box.project / "there/old.html").write_text("old")
    os.symlink("there/old.html", box.project / "link")
    assert box.run("report", "--html", "link").returncode == 0
    assert (box.project / "link").is_symlink()
    new = box.project / "there/old.html"
    assert new.read_text().startswith("<!doctype html>")
    assert stat.S_IMODE(new.stat().st_mode) == 0o600


def test_what_root_writes_in_a_users_directory_stays_roots(box: Box) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: writes into another user's directory")
    os.chown(box.project, 65534, 65534)
    assert box.run("report", "--html", "new.html").returncode == 0
    info = (box.project / "new.html").stat()
    assert (info.st_uid, stat.S_IMODE(info.st_mode)) == (0, 0o600)
    (box.project / "theirs").symlink_to(box.root / "log")
    os.chown(box.project / "theirs", 65534, 65534, follow_symlinks=False)
    refused(box, "theirs", what="a link that another user made")


def test_a_link_that_is_put_there_meanwhile_leads_root_nowhere(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: another user makes the link")
    file, other = box.project / "page.html", box.root / "other"
    file.write_text("old")
    other.write_text("of root's")
    realpath = os.path.realpath

    def slow(path: str) -> str:
        file.unlink()
        file.symlink_to(other)
        os.chown(file, 65534, 65534, follow_symlinks=False)
        return realpath(path)

    with monkeypatch.context() as patch:
        patch.setattr(os.path, "realpath", slow)
        with pytest.raises(SandrunError):
            output.write(str(file), "new")
    assert other.read_text() == "of root's"


def test_a_name_that_is_not_utf_8(box: Box) -> None:
    name = os.fsdecode(b"\xff.html")
    done = box.run(
        "report", "--html", name, argv=["sh", "-c", '"$@" | od -An -c', "sh", *launcher()]
    )
    assert done.returncode == 0 and "377" in done.stdout and done.stderr == ""
    assert (box.project / name).exists()


def test_a_full_disk_leaves_the_old_page(box: Box) -> None:
    (box.project / "report.html").write_text("old")
    script = 'ulimit -f 1; exec "$@"'
    done = box.run("report", "--html", "report.html", argv=["sh", "-c", script, "sh", *launcher()])
    assert done.returncode == 125
    assert done.stderr.startswith("sandrun: cannot write report.html: ")
    assert len(done.stderr.splitlines()) == 2
    assert [entry.name for entry in box.project.iterdir()] == ["report.html"]
    assert (box.project / "report.html").read_text() == "old"


def test_a_reader_that_is_gone_or_full_is_one_line(box: Box) -> None:
    done = box.run("report", "--html", "-", argv=["sh", "-c", '"$@" >/dev/full', "sh", *launcher()])
    assert done.returncode == 125 and len(done.stderr.splitlines()) == 1


def test_a_history_that_cannot_be_read_gives_a_page_and_a_warning(box: Box) -> None:
    state(box).mkdir(parents=True)
    os.mkfifo(state(box) / "history.jsonl")
    done = box.run("report", "--html", "report.html")
    assert done.returncode == 0
    assert "history" in done.stderr and "FIFO" in done.stderr
    assert (box.project / "report.html").exists()


def test_records_of_every_shape_are_survived(box: Box) -> None:
    write(state(box), 3)
    odd = [
        {"v": 1}, {"v": 2}, [], 7, {"v": 1, "id": 5, "command": [1]},
        {"v": 1, "since": 1e300, "wall": -5, "peak": -1, "limit": 0, "reason": "", "command": []},
        {"v": 1, "since": 0, "wait": 1e18, "wall": 1e18, "peak": 1 << 62, "limit": 1},
        {"v": 1, "since": 1.8e9, "waited_for": [{"id": [], "seconds": "x"}, 5], "id": '"><b>'},
        {"v": 1, "id": "a b", "since": 1.8e9, "wait": 5e8, "waited_for": {"a": 1}},
        {"v": 1, "exit": 1 << 70, "reason": "<later>"},
    ]  # fmt: skip
    with open(state(box) / "history.jsonl", "a") as file:
        for value in odd * 2:
            file.write(json.dumps(value) + "\n")
        file.write('{"v": 1, "since": NaN, "wall": Infinity}\n{"v": 1, "torn')
    done = box.run("report", "--html", "report.html")
    assert done.returncode == 0 and "Traceback" not in done.stderr
    parser = html5lib.HTMLParser()
    parser.parse((box.project / "report.html").read_text())
    assert parser.errors == []


def test_the_style_is_allowed_by_its_hash_alone(box: Box) -> None:
    text = report(box)
    assert "default-src &#x27;none&#x27;" in text or "default-src 'none'" in text
    assert "unsafe" not in text and "style=" not in text
    assert page.MOST < 2_000_000

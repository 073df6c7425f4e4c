"""`sandrun history prune`: removes old records, and the samples of old runs.

Promises that a run that ends meanwhile is recorded exactly once (locks of `sandrun.history`), and
that the file is replaced atomically, with its mode and owner, and only if something is removed.
Runs wait only for the last step, which takes a millisecond. A prune that is killed leaves the
history as it was or the new one whole, and perhaps a temporary file, which the next prune removes.

It removes the records of runs that ended longer ago than `age`, then the oldest ones until the
others fit into `size`, and lines that are no JSON. A record of another version of sandrun is
removed by `size` only.
"""

import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from io import FileIO
from typing import BinaryIO

from sandrun import messages
from sandrun.insight import records, samples, totals, wording
from sandrun.model import SandrunError, error_text, size_text
from sandrun.platform import folders

_CHUNK = 1 << 20


@dataclass
class _Plan:
    """The contents of a file up to the offset `end`, the end of a line: the number of lines, and of
    records; the lines that are kept, and their bytes. Of the lines that are not too old, the first
    `skip` bytes are not kept."""

    end: int
    lines: int = 0
    records: int = 0
    kept: int = 0
    kept_size: int = 0
    skip: int = 0


def prune(age: float, size: int, dry_run: bool) -> "list[str]":
    """Prune all records and samples; `age` in seconds, `size` in bytes, 0: no limit. Returns lines
    that describe what was removed. Raises SandrunError."""
    now = time.time()
    lines = []
    if not dry_run:
        _count()
    for path in records.files():
        lines += _prune_file(path, now - age if age else 0.0, size, dry_run)
    try:
        count, freed = samples.prune(now, age, size, dry_run)
    except OSError as error:
        messages.warn(f"cannot remove samples: {error_text(error)}", f"ls -ld {error.filename}")
        return lines
    many = wording.count(count, "run")
    return [*lines, f"{_verb(dry_run)} the samples of {many} ({size_text(freed)})"]


def _count() -> None:
    """Count the records before they go, if metrics are kept."""
    try:
        totals.catch_up()
    except OSError as error:
        raise SandrunError(f"cannot count the runs for metrics: {error_text(error)}") from None


def _verb(dry_run: bool) -> str:
    return "would remove" if dry_run else "removed"


def _prune_file(path: str, oldest: float, size: int, dry_run: bool) -> "list[str]":
    for _ in range(5):
        with records.reading(path, os.O_RDONLY if dry_run else os.O_RDWR) as file:
            if file is None:
                return []
            plan = _plan(file, oldest, size)
            removed = plan.lines - plan.kept
            if removed and not dry_run:
                _require_ours(path, file, plan)
                if not _replace(path, file, plan, oldest):
                    continue  # another prune was quicker
            freed = size_text(plan.end - plan.kept_size)
            return [f"{_verb(dry_run)} {removed:,} of {plan.lines:,} records ({freed}) of {path}"]
        return []  # it cannot be read, which was reported
    raise SandrunError(f"{path} is replaced again and again by other programs")


def _require_ours(path: str, file: FileIO, plan: _Plan) -> None:
    """Raise SandrunError unless the file is a history of this user's.

    Root may run with a user's HOME. That user must not choose, by a link, what root rewrites.
    """
    info = os.fstat(file.fileno())
    if sys.platform == "win32":
        raise SandrunError("records are not pruned on Windows, where runs keep the file open")
    is_owner = folders.is_own(info.st_uid) or os.geteuid() == 0
    if (
        not is_owner
        or not plan.records
        or info.st_nlink > 1
        or (os.geteuid() == 0 and os.path.islink(path))
    ):
        raise SandrunError(f"{path} is no history of yours: it is left alone", f"ls -l {path}")


def _judged(file: FileIO, end: int, oldest: float) -> "Iterator[tuple[bytes, bool, bool]]":
    """Each line up to an offset, whether it is a record of any version, and whether it is kept if
    `size` is no limit."""
    for line in records.forward(file, 0, end):
        if not line:
            continue
        record = records.decode(line)
        if record is not None:
            since = record.get("since")
            is_old = since is not None and since + record.get("wall", 0.0) < oldest
            yield line, True, not is_old
        else:
            is_other = _has_other_version(line)
            yield line, is_other, is_other


def _has_other_version(line: bytes) -> bool:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and isinstance(found.get("v"), int) and "id" in found


def _plan(file: FileIO, oldest: float, size: int) -> _Plan:
    plan = _Plan(_end_of_lines(file))
    for line, is_record, stays in _judged(file, plan.end, oldest):
        plan.lines += 1
        plan.records += is_record
        plan.kept += stays
        plan.kept_size += stays and len(line) + 1
    skipped = 0
    while_larger = _judged(file, plan.end, oldest) if 0 < size < plan.kept_size else ()
    for line, _, stays in while_larger:
        if plan.kept_size <= size:
            break
        if stays:
            plan.kept -= 1
            plan.kept_size -= len(line) + 1
            skipped += len(line) + 1
    plan.skip = skipped
    return plan


def _end_of_lines(file: FileIO) -> int:
    """The offset after the last line end. What follows may be a record that is being written."""
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        start = max(0, end - _CHUNK)
        file.seek(start)
        found = file.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def _replace(path: str, file: FileIO, plan: _Plan, oldest: float) -> bool:
    """Replace the file by the lines that stay and by what follows `plan.end`. False: another
    program was quicker, so nothing was replaced. Raises SandrunError."""
    if sys.platform == "win32":
        return False
    import fcntl

    real = os.path.realpath(path)
    private = folders.private_name(real)
    try:
        _remove_abandoned(real)
        fd = folders.create(private, os.O_RDWR, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)  # proves to other prunes that it is in use
            if os.fstat(fd).st_nlink == 0:  # another prune removed it before it was locked
                private = ""
                return False
            with open(fd, "wb", closefd=False) as new:
                _copy(file, new, plan, oldest)
            folders.keep_rights(fd, os.fstat(file.fileno()))
            os.fsync(fd)
            # From here on no run writes a record.
            fcntl.flock(file.fileno(), fcntl.LOCK_EX)
            if not os.path.samestat(os.stat(real), os.fstat(file.fileno())):
                return False
            file.seek(plan.end)
            with open(fd, "wb", closefd=False) as new:
                shutil.copyfileobj(file, new, _CHUNK)
            os.rename(private, real)
            private = ""
            return True
        finally:
            if private:
                os.unlink(private)
            os.close(fd)
    except OSError as error:
        raise SandrunError(f"cannot replace {real}: {error.strerror}") from None


def _copy(file: FileIO, new: BinaryIO, plan: _Plan, oldest: float) -> None:
    skip = plan.skip
    for line, _, stays in _judged(file, plan.end, oldest):
        if stays and skip <= 0:
            new.write(line + b"\n")
        elif stays:
            skip -= len(line) + 1


def _remove_abandoned(real: str) -> None:
    """Remove the temporary files of killed prunes: those that no process has locked."""
    if sys.platform == "win32":
        return
    import fcntl

    folder, name = os.path.split(real)
    for other in os.listdir(folder):
        end = other.removeprefix(name + ".")
        if end == other or len(end) != 16 or not set(end) <= set("0123456789abcdef"):
            continue
        path = os.path.join(folder, other)
        try:
            fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(path)
        except OSError:
            pass  # its prune is alive
        finally:
            os.close(fd)

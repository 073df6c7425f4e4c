"""The memory that the runs on this host can share."""

import os
import sys


def host_memory() -> int:
    """The host's memory in bytes, or the limit of an enclosing container if that is lower; 0: not
    known."""
    found = [size for size in (total(), enclosing_limit()) if size]
    return min(found) if found else 0


if sys.platform == "win32":
    import ctypes

    from sandrun.platform import windows_api

    def total() -> int:
        """The host's memory in bytes."""
        status = windows_api.MemoryStatus(dwLength=ctypes.sizeof(windows_api.MemoryStatus))
        windows_api.calls.GlobalMemoryStatusEx(ctypes.byref(status))
        return int(status.ullTotalPhys)

    def enclosing_limit() -> int:
        """0: the limits of an enclosing job are not known."""
        return 0

else:

    def total() -> int:
        """The host's memory in bytes; 0: not known."""
        try:
            return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGESIZE")
        except (OSError, ValueError):
            return 0

    def enclosing_limit() -> int:
        """The lowest memory limit of the visible cgroups that contain us; 0: none.

        In a cgroup namespace the root group has the container's own limit. In v1 a number near
        2**63 means no limit.
        """
        lowest = 0
        for line in _lines("/proc/self/cgroup"):
            _, controllers, path = [*line.split(":", 2), "", ""][:3]
            if controllers == "":
                base, name = "/sys/fs/cgroup", "memory.max"
            elif "memory" in controllers.split(","):
                base, name = "/sys/fs/cgroup/memory", "memory.limit_in_bytes"
            else:
                continue
            while True:
                for text in _lines(f"{base}{path}/{name}")[:1]:
                    if text.isdigit() and int(text) < 1 << 60:
                        lowest = min(lowest or 1 << 60, int(text))
                if path in ("", "/"):
                    break
                path = os.path.dirname(path)
        return lowest

    def _lines(path: str) -> "list[str]":
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return []
        try:
            return os.read(fd, 65536).decode("utf-8", "surrogateescape").split("\n")
        except OSError:
            return []
        finally:
            os.close(fd)

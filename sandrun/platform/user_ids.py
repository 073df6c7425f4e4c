"""The user's uid as other processes see it. Imported only in a user namespace or under fakeroot(1).

In a user namespace (`unshare -Ur`, rootless containers) uids are mapped to others outside. With the
library that fakeroot(1) preloads, geteuid(2) and stat(2) return other uids than the kernel has.
"""


def kernel_uid(uid: int) -> int:
    """Our effective uid in the kernel, whatever a preloaded library returns; `uid` if unknown."""
    for line in _lines("/proc/self/status"):
        if line.startswith("Uid:"):
            return int(line.split()[2])  # real, effective, saved, file system (proc(5))
    return uid


def outside_uid(uid: int) -> int:
    """The uid in the parent of our user namespace (user_namespaces(7)) to which `uid` is mapped;
    `uid` if it is unknown."""
    for line in _lines("/proc/self/uid_map"):
        inside, outside, count = map(int, line.split())
        if inside <= uid < inside + count:
            return outside + uid - inside
    return uid


def _lines(path: str) -> "list[str]":
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read().splitlines()
    except OSError:
        return []

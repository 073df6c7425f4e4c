"""Compares what sandrun tells ctypes of libproc with the Darwin headers that ziglang carries.

`python tests/layout.py`, in an environment with ziglang (tests/setup layout): each structure's
size, each field's place and size, each constant and each function's arguments become assertions
that its clang checks for both of Apple's processors. Ends with 1 and clang's words if one is wrong.
"""

import ctypes
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
_cdll = ctypes.CDLL
ctypes.CDLL = lambda *_: SimpleNamespace(  # type: ignore[assignment,misc]  # imported, not called
    proc_listpids=SimpleNamespace(),
    proc_pidinfo=SimpleNamespace(),
    proc_pid_rusage=SimpleNamespace(),
    mach_timebase_info=lambda base: setattr(base._obj, "denom", 1),
)
from sandrun.platform import macos_processes  # noqa: E402

ctypes.CDLL = _cdll  # type: ignore[misc]

TARGETS = ("arm64-apple-macos11", "x86_64-apple-macos11")
HEADERS = ("libproc.h", "mach/mach_time.h", "sys/proc.h", "sys/proc_info.h", "sys/resource.h")
STRUCTURES: "Mapping[str, type[ctypes.Structure]]" = {
    "struct proc_bsdshortinfo": macos_processes.ProcBsdShortInfo,
    "struct rusage_info_v4": macos_processes.RusageInfoV4,
    "struct mach_timebase_info": macos_processes.Timebase,
}
CONSTANTS = {
    "PROC_PPID_ONLY": macos_processes._PPID_ONLY,
    "PROC_UID_ONLY": macos_processes._UID_ONLY,
    "PROC_PIDT_SHORTBSDINFO": macos_processes._SHORTBSDINFO,
    "RUSAGE_INFO_V4": macos_processes._RUSAGE_V4,
    **{name: macos_processes._STATES.index(state) for name, state in
       {"SIDL": "I", "SRUN": "R", "SSLEEP": "S", "SSTOP": "T", "SZOMB": "Z"}.items()},
}  # fmt: skip
_C_TYPES: "Mapping[object, str]" = {
    ctypes.c_int: "int",
    ctypes.c_uint32: "uint32_t",
    ctypes.c_uint64: "uint64_t",
}
_POINTERS = {"proc_pid_rusage": "rusage_info_t *", "mach_timebase_info": "mach_timebase_info_t"}
"""The pointers that are not to void."""


def assertions(structures: "Mapping[str, type[ctypes.Structure]]") -> "list[str]":
    """What must hold, as lines of C."""
    lines = []
    for name, structure in structures.items():
        lines.append(f"sizeof({name}) == {ctypes.sizeof(structure)}")
        for field, *_ in structure._fields_:
            at = getattr(structure, field)
            lines.append(f"__builtin_offsetof({name}, {field}) == {at.offset}")
            lines.append(f"sizeof((({name} *)0)->{field}) == {at.size}")
    lines += [f"{name} == {value}" for name, value in CONSTANTS.items()]
    return [f'_Static_assert({line}, "{line}");' for line in lines]


def declarations() -> "list[str]":
    """Each function once more, which C only takes if no type differs."""
    lines = []
    for name, kinds in macos_processes.PROTOTYPES.items():
        void = _POINTERS.get(name, "void *")
        types = [void if kind is ctypes.c_void_p else _C_TYPES[kind] for kind in kinds]
        lines.append(f"int {name}({', '.join(types)});")
    return lines


def complaints(lines: "list[str]", target: str) -> str:
    """What clang says of these lines; empty: all is well."""
    home = Path(sysconfig.get_path("purelib")) / "ziglang"
    headers = (home / "lib/include", home / "lib/libc/include/any-darwin-any")
    include = ["-nostdinc", *(f"-isystem{path}" for path in headers)]
    text = "\n".join([*(f"#include <{name}>" for name in HEADERS), *lines])
    done = subprocess.run(
        [home / "zig", "clang", f"--target={target}", *include, "-fsyntax-only", "-xc", "-"],
        input=text,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stderr if done.returncode else ""


class Wrong(ctypes.Structure):
    """One field too early: what the check must not let pass."""

    _fields_ = macos_processes.RusageInfoV4._fields_[1:]


def main() -> int:
    lines = [*assertions(STRUCTURES), *declarations()]
    for target in TARGETS:
        said = complaints(lines, target)
        if said:
            print(said, file=sys.stderr)
            return 1
        if not complaints(assertions({"struct rusage_info_v4": Wrong}), target):
            print(f"{target}: a wrong structure passed: the check checks nothing", file=sys.stderr)
            return 1
        print(f"{target}: {len(lines)} assertions on {len(STRUCTURES)} structures hold")
    return 0


if __name__ == "__main__":
    sys.exit(main())

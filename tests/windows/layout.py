"""Compares what sandrun tells ctypes of Windows with the headers that mingw-w64 has.

`python tests/windows/layout.py`: each structure's size, each field's place and size, each constant
and each prototype becomes C that only compiles if it is right. Ends with 1 and the compiler's words
if something is wrong, 125 if there is no compiler.
"""

import ctypes
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from sandrun.platform import windows_api, windows_calling

COMPILER = "x86_64-w64-mingw32-gcc"
PACKAGE = "gcc-mingw-w64-x86-64-win32"
STRICT = ("-Wall", "-Wextra", "-Wconversion", "-Werror", "-Wno-unused-parameter")
HEADER = "#define _WIN32_WINNT 0x0A00\n#include <stdint.h>\n#include <windows.h>\n"
_C_TYPES = {
    windows_api.BOOL: "int32_t",
    windows_api.DWORD: "uint32_t",
    windows_api.LARGE: "LARGE_INTEGER",
    windows_api.SIZE: "uint64_t",
    windows_api.HANDLE: "void *",
    windows_api.TEXT: "wchar_t *",
}


def structures() -> "dict[str, type[ctypes.Structure]]":
    """Those of the table by their names in C; the list of pids with one, as C declares it."""
    return {
        **{name: structure for structure, name in windows_api.HEADERS.items()},
        "JOBOBJECT_BASIC_PROCESS_ID_LIST": type(windows_api.pid_list(1)),
    }


def asserts(name: str, structure: "type[ctypes.Structure]") -> "list[str]":
    """What must hold of a structure, as lines of C."""
    facts = [f"sizeof({name}) == {ctypes.sizeof(structure)}"]
    for field, *_ in structure._fields_:
        place = getattr(structure, field)
        facts.append(f"__builtin_offsetof({name}, {field}) == {place.offset}")
        facts.append(f"sizeof((({name} *)0)->{field}) == {place.size}")
    return [_assert(fact) for fact in facts]


def _assert(fact: str) -> str:
    return f'_Static_assert({fact}, "{fact}");'


def constants() -> "list[str]":
    """Every number that `api` names as the headers do."""
    numbers = {n: v for n, v in vars(windows_api).items() if type(v) is int and n[0] != "_"}
    return [_assert(f"(unsigned long long){n} == {v}ull") for n, v in numbers.items()]


def prototype(name: str, wanted: windows_calling.Prototype) -> "list[str]":
    """A call with arguments of our types: too many, too few, a pointer for a number or a number
    that is too wide do not compile, nor does another size of the result."""
    parameters = ", ".join(f"{_C_TYPES[kind]} a{at}" for at, kind in enumerate(wanted.arguments))
    call = f"{name}({', '.join(f'a{at}' for at in range(len(wanted.arguments)))})"
    size = ctypes.sizeof(wanted.result) if wanted.result else 0
    check = _assert(f"sizeof({call}) == {size}") if size else ""
    return [f"void try_{name}({parameters or 'void'}) {{ {check} {call}; }}"]


def complaints(lines: "Iterable[str]") -> str:
    """What the compiler says of these lines; empty: all is well."""
    done = subprocess.run(
        [COMPILER, *STRICT, "-fsyntax-only", "-xc", "-"],
        input=HEADER + "\n".join(lines),
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stderr


def everything() -> "list[str]":
    """All that is checked."""
    lines = [line for pair in structures().items() for line in asserts(*pair)]
    lines += constants()
    for name, wanted in windows_api.PROTOTYPES.items():
        if wanted.dll == "kernel32":
            lines += prototype(name, wanted)
    return lines


def mistakes() -> "list[list[str]]":
    """What the check must not let pass."""

    class Early(ctypes.Structure):
        _fields_ = windows_api.JobLimits._fields_[1:]

    _, *rest = windows_api.PROTOTYPES["CreateProcessW"].arguments
    wide = windows_calling.Prototype(
        "kernel32", windows_api.BOOL, windows_calling.ZERO, windows_api.HANDLE, windows_api.SIZE
    )
    return [
        asserts("JOBOBJECT_EXTENDED_LIMIT_INFORMATION", Early),
        [_assert(f"JOB_OBJECT_LIMIT_JOB_MEMORY == {windows_api.JOB_OBJECT_LIMIT_JOB_MEMORY * 2}")],
        prototype(
            "CreateProcessW",
            windows_calling.Prototype("kernel32", windows_api.BOOL, windows_calling.ZERO, *rest),
        ),
        prototype("TerminateJobObject", wide),
        prototype(
            "OpenProcess",
            windows_calling.Prototype(
                "kernel32", windows_api.BOOL, windows_calling.ZERO, *rest[:3]
            ),
        ),
    ]


def main() -> int:
    if not shutil.which(COMPILER):
        print(f"no {COMPILER}\nhint: apt-get install {PACKAGE}", file=sys.stderr)
        return 125
    lines = everything()
    said = complaints(lines)
    if said:
        print(said, file=sys.stderr)
        return 1
    if not all(map(complaints, mistakes())):
        print("a mistake passed: the check checks nothing", file=sys.stderr)
        return 1
    print(f"{len(lines)} facts about {len(structures())} structures and the calls hold")
    return 0


if __name__ == "__main__":
    sys.exit(main())

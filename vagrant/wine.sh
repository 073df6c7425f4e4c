#!/bin/sh
# wine.sh OUT WHEELS: a root file system with Wine, and in its C: a Windows CPython with packages.
#
# Promises: OUT appears whole or not at all; nothing of the host is changed; every byte comes from
# Debian 13's packages (Wine 10, the standard library) or from the wheels in the folder WHEELS.
# python.org's python313.dll, with its extension modules, is carried by panda3d's wheel for
# win_amd64; a ten-line python.exe calls it. No wheel has the python3.dll that stable-ABI extensions
# (psutil's) want: it is generated, every name forwarded to python313.dll.
# Leaves to others: caching and fetching wheels (wine-lab), each run (wine-guest.sh).
# Needs root, mmdebstrap, gcc-mingw-w64-x86-64-win32, python3.
set -eu
out=$1 wheels=$2
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d "${TMPDIR:-/tmp}/sandrun-wine.XXXXXX")
trap 'rm -rf --one-file-system "$work"' EXIT
trap 'exit 143' HUP INT TERM # or dash would leave without the line above
chmod 755 "$work"

# In a namespace of its own, for the same reason as in image.sh.
unshare --mount --propagation private \
    mmdebstrap --quiet --variant=minbase --include=wine64,libpython3.13-stdlib \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/info/*' \
    --aptopt='Acquire::Retries "3"' trixie "$work/root.tar" </dev/null &
debian=$!

mkdir -p "$work/python/DLLs" "$work/panda"
panda=$(echo "$wheels"/panda3d-*-cp313-cp313-win_amd64.whl)
python3 -m zipfile -e "$panda" "$work/panda"
dlls=$work/panda/deploy_libs
cp "$dlls/python313.dll" "$dlls/VCRUNTIME140.dll" "$work/python/"
for part in _asyncio _bz2 _ctypes _decimal _elementtree _hashlib _lzma _multiprocessing _overlapped \
    _queue _socket _sqlite3 _ssl pyexpat select unicodedata; do
    cp "$dlls/$part.pyd" "$work/python/DLLs/"
done
cp "$dlls"/libffi-*.dll "$dlls"/libcrypto-*.dll "$dlls"/libssl-*.dll "$dlls/sqlite3.dll" "$work/python/DLLs/"

cc=x86_64-w64-mingw32-gcc
cat >"$work/python.c" <<'E2'
#include <wchar.h>
__declspec(dllimport) int Py_Main(int, wchar_t **);
int wmain(int argc, wchar_t **argv) { return Py_Main(argc, argv); }
E2
$cc -O1 -s -municode -o "$work/python/python.exe" "$work/python.c" "$dlls/python313.dll"
{
    printf 'LIBRARY python3.dll\nEXPORTS\n'
    x86_64-w64-mingw32-objdump -p "$dlls/python313.dll" | sed -n '
        1,/^\[Ordinal\/Name Pointer\] Table/d
        s/^\t\[ *[0-9]*\] \(.* \)\{0,1\}\([A-Za-z_][A-Za-z_0-9]*\)$/\2=python313.\2/p'
} >"$work/python3.def"
grep -q '^PyModule_Create2=' "$work/python3.def" || { echo "python313.dll's names were not read" >&2; exit 1; }
: >"$work/empty.c"
$cc -shared -nostdlib -Wl,-e,0 -s -o "$work/python/python3.dll" "$work/empty.c" "$work/python3.def"

wait $debian
mkdir "$work/root"
tar -C "$work/root" --no-same-owner --exclude='./dev/*' -xpf "$work/root.tar"
rm "$work/root.tar"
for node in null zero random urandom tty; do : >"$work/root/dev/$node"; done
mkdir "$work/root/wine" "$work/root/job"
unshare --mount --pid --fork --kill-child --propagation private \
    sh "$here/wine-guest.sh" "$work/root" "" sh -c '
    wine64 wineboot -i && wineserver64 -w
    # A new C: holds a copy of every DLL (770 MB); one of each is enough.
    cd /usr/lib/x86_64-linux-gnu/wine/x86_64-windows
    for file in *; do
        copy=/wine/drive_c/windows/system32/$file
        ! cmp -s "$file" "$copy" || ln -f "$file" "$copy"
    done'
[ -f "$work/root/wine/system.reg" ] || { echo "wineboot made no C:" >&2; exit 1; }
cp -r "$work/root/usr/lib/python3.13" "$work/python/Lib"
rm -rf "$work/python/Lib/lib-dynload"
mkdir -p "$work/python/Lib/site-packages"
for wheel in "$wheels"/*.whl; do
    [ "$wheel" = "$panda" ] || python3 -m zipfile -e "$wheel" "$work/python/Lib/site-packages"
done
mv "$work/python" "$work/root/wine/drive_c/python"
mv "$work/root" "$out"

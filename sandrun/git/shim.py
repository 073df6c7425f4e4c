"""The text of the `git` shim: POSIX sh, because a read-only git ends before Python has started.

For commands that never write (`classify.READ_ONLY`) the shim becomes the real git at once; for all
others it becomes `sandrun git`, which parses the command line. Both follow the same rules: the
subcommand is the first word that is no option, a background reader takes no optional locks, and a
command that may refresh the index (`classify.refreshes`) needs the tree's turn.

A directory of shims has an empty file `.sandrun-shims`, by which a shim skips it: reading every
`git` on PATH for a mark would cost more in sh than git itself.

`search` is the text with which every shim, of git or another tool, finds the program behind it.
"""

from sandrun.git import classify

DIRECTORY_MARK = ".sandrun-shims"

# A shim cannot see whether a version manager behind it came back to it by PATH, or whether the tool
# started itself by name. So it records what it started, in SANDRUN_SHIM:
#   PID:PPID:DEPTH:AGAIN:SINCE:TOOL:OWN<newline>BEFORE<newline>WORDS
#   PID, PPID  of the process that became the tool; no PID: the run's child, whose parent is PPID
#   DEPTH      the number of nested shims
#   AGAIN      how often all places had been used already; SINCE, the time of the first such case
#   OWN        the places that this process used
#   BEFORE     those that enclosing processes used with the same words in the same directory
#   WORDS      that directory and these words
# If a process becomes the tool again, it came back, so the tool is further behind. A child starts a
# new search. The search ends, because each process uses a place once, nested processes use it twice
# with the same words, and the counts limit the rest (a server that restarts itself once a minute is
# no loop).
_SEARCH = r"""line='
'
words="$PWD $*" depth=0 again=0 since= own= before= real= back=
[ ${{#words}} -lt 1000 ] || words="$PWD $# ${{#words}}"
recall() {{
	set -f
	IFS=:
	set -- ${{SANDRUN_SHIM-}}
	unset IFS
	set +f
	[ $# -gt 6 ] && kill -0 "${{1:-$2}}" 2>/dev/null || return
	case $3$4$5 in *[!0-9]*) return ;; esac
	depth=$(($3 + 1))
	[ "$6" = {tool} ] || return
	since=$5 own=${{SANDRUN_SHIM%%"$line"*}} own=${{own#*:*:*:*:*:*:}}
	rest=${{SANDRUN_SHIM#*"$line"}}
	same=
	[ "${{rest#*"$line"}}" != "$words" ] || same=1
	[ $depth -lt {deep} ] || same=1
	[ -z "$same" ] || again=$4 before=${{rest%%"$line"*}}
	[ "$1:$2" != "$$:$PPID" ] && [ "$1:$2" != ":$PPID" ] || return
	[ -z "$same" ] || before=$before$own
	[ $depth -lt {deep} ] || before=$before$before
	own=
}}
[ -z "${{SANDRUN_SHIM-}}" ] || recall
set -f
IFS=:
path=$PATH: # an empty entry is the current directory, also the last one
for directory in $path; do
	directory=${{directory:-.}} place=$directory/{tool}
	[ -x "$place" ] && [ ! -d "$place" ] && [ ! -e "$directory/{mark}" ] || continue
	case $own in *":$place:"*) back=$place; continue ;; esac
	case $before in *":$place:"*":$place:"*) back=$place; continue ;; esac
	real=$place
	break
done
unset IFS
set +f
if [ -z "$real" ] && [ "$back" ]; then
	now=$(command -p date +%s)
	[ $((now - ${{since:-$now}})) -lt 600 ] || depth=0 again=0 since=
	since=${{since:-$now}}
	[ $again -ge 20 ] || [ $depth -ge {deepest} ] || real=$back
	again=$((again + 1))
	case $own in *":$back:"*) own=${{own%%":$back:"*}}${{own#*":$back:"}} ;; esac # once, and last
fi
if [ -z "$real" ]; then
	echo >&2 "sandrun: {tool}: command not found${{back:+, $back only starts itself}}"
	exit 127
fi
note="$depth:$again:$since:{tool}:$own:$real:$line$before$line$words"
export SANDRUN_SHIM="$$:$PPID:$note"
"""


def search(tool: str) -> str:
    """Shell text that sets `real` to the program behind a shim for `tool`, or exits with 127.

    It exports SANDRUN_SHIM for a shell that becomes `real`; a shell that becomes a run of it must
    set it to ":$$:$note".
    """
    return _SEARCH.format(tool=tool, mark=DIRECTORY_MARK, deep=300, deepest=400)


_TEXT = """#!/bin/sh
# sandrun shim for git: commands that only read start at once, others wait for their turn
word= skip=
for argument; do
	if [ "$skip" ]; then skip=; continue; fi
	case $argument in
	{with_value}) skip=1 ;;
	{answers}|--list-cmds=*) word=version; break ;;
	--no-optional-locks) GIT_OPTIONAL_LOCKS=0 ;;
	-*) ;;
	*) word=$argument; break ;;
	esac
done
# Commands that may write a refreshed index need the tree's turn.
case "$word ${{GIT_OPTIONAL_LOCKS-}} $* " in
"status 0 "*|diff*" --cached "*|diff*" --staged "*|diff*" --no-index "*) ;;
"status "*|"diff "*|describe*" --dirty"*) word=refresh ;;
esac
{search}case ${{word:-version}} in
{read_only})
	[ -t 0 ] || [ -t 1 ] || [ -t 2 ] || export GIT_OPTIONAL_LOCKS="${{GIT_OPTIONAL_LOCKS-0}}"
	;;
*)
	{sandrun} "$@"
{gone}	;;
esac
exec "$real" "$@"
"""

_OTHER = """#!/bin/sh
# sandrun shim for {tool}: commands that may take git's locks wait for their turn
{search}case ${{1-}} in
{passed}) ;;
*)
	{sandrun} "$@"
{gone}	;;
esac
exec "$real" "$@"
"""

_GONE = """\
	echo >&2 "sandrun: {tool} runs without its turn: sandrun is not where it was"
	echo >&2 "sandrun: hint: install it and run: sandrun shims add {tool}; or remove $0"
"""


def launch(python: str, library: str) -> str:
    """The shell text that becomes `sandrun git`, with the package in the folder `library`; it does
    nothing if sandrun is gone.

    It starts Python without `site` (-S), which is not needed and a quarter of Python's start.
    """
    from sandrun.model import command_text

    python = command_text([python])
    file = command_text([f"{library}/sandrun/cli/launch.py"])
    return f'[ ! -x {python} ] || [ ! -e {file} ] || exec {python} -I -S {file} --guard "$real"'


def other(tool: str, sandrun: str) -> str:
    """The shim for one of `other_tools`; `sandrun` as for `text`."""
    from sandrun.git import other_tools

    passed = "|".join(other_tools.passed_words(tool))
    gone = _GONE.format(tool=tool)
    return _OTHER.format(tool=tool, search=search(tool), passed=passed, sandrun=sandrun, gone=gone)


def text(sandrun: str) -> str:
    """The shim for git. `sandrun` is the shell text that becomes `sandrun git` with the words after
    it, such as `exec /usr/bin/sandrun git` or that of `launch`; if it returns, git runs
    unguarded."""
    return _TEXT.format(
        with_value="|".join(sorted(classify.WITH_VALUE)),
        answers="|".join(sorted(classify.ANSWERS)),
        read_only="|".join(sorted(classify.READ_ONLY)),
        sandrun=sandrun,
        gone=_GONE.format(tool="git"),
        search=search("git"),
    )

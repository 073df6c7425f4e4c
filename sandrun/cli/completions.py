"""Completions for shells, from click's tree of commands.

Fixed words are written into them as lists, so a TAB starts Python only for words that change: the
ids of runs and the installed shims. The shell completes the command after the options, and the
words after `git`, as it completes any command.
"""

from collections.abc import Callable, Iterator

import click

from sandrun.cli import describe

_KINDS = {
    "priority": ("high", "normal", "low"),
    "pool": ("off", "50%", "80%"),
    "signal": ("TERM", "INT", "HUP", "QUIT", "USR1", "USR2", "KILL"),
}
"""Examples offered for values that are not a closed set."""
_TOOLS = "make ninja cmake pytest npm cargo go git"
_SHIMS = "sandrun shims list 2>/dev/null"
_IDS = "sandrun {which} 2>/dev/null"
_ID_LISTS = {"kill": "status --all --ids all", "log": "log --ids"}
_WAITERS = "status --all --ids waits"


def text(root: click.Command, shell: str) -> str:
    """The script that a shell evaluates to complete the words of `sandrun`."""
    return {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell](root)


def _nodes(command: click.Command, path: str = "") -> "Iterator[tuple[str, click.Command]]":
    """All subcommands, including nested ones, with their words ("shims add")."""
    for name, sub in describe.subcommands(command).items():
        here = f"{path} {name}".strip()
        yield here, sub
        yield from _nodes(sub, here)


def _values(option: click.Option) -> "tuple[str, ...]":
    # Our own type has an attribute `option` with the choices; click's types have them themselves.
    ours = getattr(option.type, "option", None)
    found = getattr(ours or option.type, "choices", ())
    return tuple(map(str, found)) or _KINDS.get(getattr(ours, "kind", ""), ())


def _takes_value(option: click.Option) -> bool:
    return not (option.is_flag or option.count)


def _has_any_value(option: click.Option) -> bool:
    """Whether the option takes a value for which there are no suggestions."""
    has_some = _values(option) or _is_folder(option) or _is_file(option)
    return _takes_value(option) and not has_some


def _is_folder(option: click.Option) -> bool:
    return option.metavar == "DIR"


def _is_file(option: click.Option) -> bool:
    return option.metavar == "FILE"


def _arguments(path: str, command: click.Command) -> "tuple[str, str]":
    """How to complete a subcommand's arguments: `words`, `ids` or `shims`, and the words or the
    subcommand that lists the ids."""
    for param in command.params:
        if isinstance(param, click.Argument):
            choices = getattr(param.type, "choices", ())
            if choices:
                return "words", " ".join(choices)
            if param.name == "run":
                return "ids", _ID_LISTS.get(path, _WAITERS)
            if param.name == "tools":
                return ("words", _TOOLS) if path == "shims add" else ("shims", "")
    return "", ""


def _names(options: "list[click.Option]", which: "Callable[[click.Option], bool]") -> "list[str]":
    return [name for option in options if which(option) for name in option.opts]


_BASH = """\
_sandrun() {{
	local at path= words= flags= next=
	local word=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[COMP_CWORD-1]}}
	COMPREPLY=()
	for ((at = 1; at < COMP_CWORD; at++)); do
		case $path:${{COMP_WORDS[at]}} in
		:--) at=$((at + 1)) path=+; break ;;
		:git) path=+; break ;;
{paths}
		{valued})
			[ "${{COMP_WORDS[at+1]}}" != = ] || at=$((at + 1))
			at=$((at + 1)) ;;
		*:-*) ;;
		:*) path=+; break ;;
		esac
	done
	if [ "$path" = + ]; then
		flags="${{COMP_WORDS[at]}} $((COMP_CWORD - at))" next=${{COMP_WORDS[at+1]}}
		_sandrun_command $at
		case $flags:$next in
		"git 1:"*) COMPREPLY+=($(compgen -W unlock -- "$word")) ;;
		git*:unlock) COMPREPLY=($(compgen -W "--dry-run --force --restore" -- "$word")) ;;
		esac
		return
	fi
	# The shell splits --memory=4G into three words.
	if [ "$word" = = ]; then word=
	elif [ "$previous" = = ]; then previous=${{COMP_WORDS[COMP_CWORD-2]}}; fi
	case $previous in
{values}
	{folders}) COMPREPLY=($(compgen -d -- "$word")); return ;;
	{files}) COMPREPLY=($(compgen -f -- "$word")); return ;;
	{any}) compopt +o default 2>/dev/null; return ;;
	esac
	if [ "$words" ]; then COMPREPLY=($(compgen -W "$words" -- "$word")); return; fi
	case $path in
{words}
	esac
	case $word in -*) words="$flags {flags}" ;; esac
	COMPREPLY=($(compgen -W "$words" -- "$word"))
	case $path:$word in :-*) ;; :*) COMPREPLY+=($(compgen -c -- "$word")) ;; esac
}}
_sandrun_command() {{ # AT: complete the words from there on as a command
	if declare -F _command_offset >/dev/null; then _command_offset $1; return; fi
	if [ $1 = "$COMP_CWORD" ]; then
		COMPREPLY=($(compgen -c -f -- "${{COMP_WORDS[$1]}}"))
		return
	fi
	local name=${{COMP_WORDS[$1]##*/}} how
	COMP_WORDS=("${{COMP_WORDS[@]:$1}}") COMP_CWORD=$((COMP_CWORD - $1))
	complete -p "$name" >/dev/null 2>&1 ||
		. "/usr/share/bash-completion/completions/$name" 2>/dev/null
	how=$(complete -p "$name" 2>/dev/null)
	case $how in *" -F "*)
		how=${{how#* -F }}
		"${{how%% *}}" "$name" "${{COMP_WORDS[COMP_CWORD]}}" "${{COMP_WORDS[COMP_CWORD-1]}}" ;;
	esac
}}
complete -o default -F _sandrun sandrun"""


def _bash(root: click.Command) -> str:
    nodes = list(_nodes(root))
    flags = describe.flags(root)
    paths = []
    for path, _command in nodes:
        above, _, name = path.rpartition(" ")
        if path != "git":
            paths.append(f'\t\t"{above}:{name}") path="{path}" ;;')
    words = [f'\t"") words="{" ".join(describe.subcommands(root))}" ;;']
    for path, command in nodes:
        kind, which = _arguments(path, command)
        found = " ".join(describe.subcommands(command)) or {
            "words": which,
            "shims": f"$({_SHIMS})",
            "ids": f"$({_IDS.format(which=which)} | cut -f 1)",
        }.get(kind, "")
        own = " ".join(name for option in describe.flags(command) for name in option.opts)
        words.append(f'\t"{path}") words="{found}" flags="{own}" ;;')
    values = [
        f'\t{"|".join(option.opts)}) words="{" ".join(_values(option))}" ;;'
        for option in flags
        if _values(option)
    ]
    valued = _names(flags, _takes_value)
    return _BASH.format(
        paths="\n".join(paths),
        valued="|".join(f"*:{name}" for name in valued),
        values="\n".join(values),
        folders="|".join(_names(flags, _is_folder)),
        files="|".join(_names(flags, _is_file)),
        any="|".join(_names(flags, _has_any_value)),
        words="\n".join(words),
        flags=" ".join(_names(flags, lambda option: True)),
    )


_ZSH = """\
#compdef sandrun
_sandrun() {{
	local curcontext=$curcontext state line
	typeset -A opt_args
	local -a flags subcommands
	flags=(
{flags}
	)
	subcommands=(
{subcommands}
	)
	_arguments -S -C -A '-*' $flags '1: :->first' '*:: :->rest'
	case $state in
	first)
		_describe -t subcommands subcommand subcommands
		_command_names -e
		# `sta` starts both stat(1) and status: list both instead of inserting `stat`.
		(( compstate[nmatches] < 2 )) || compstate[list]=list ;;
	rest)
		[[ $words[1] != -- ]] || {{ shift words; (( CURRENT-- )) }}
		case $words[1] in
		git)
			(( CURRENT != 2 )) || compadd -- unlock
			[[ $words[2] != unlock ]] || compadd -- --dry-run --force --restore
			_normal ;;
{cases}
		*) _normal ;;
		esac ;;
	esac
}}
_sandrun_ids() {{
	local -a ids
	ids=(${{(f)"$({ids} | tr '\\t' :)"}})
	_describe run ids
}}
compdef _sandrun sandrun"""


def _clean(text: str) -> str:
    return text.replace("'", "").replace("[", "(").replace("]", ")").replace(":", ",")


def _zsh_flags(options: "list[click.Option]") -> "Iterator[str]":
    for option in options:
        value = ""
        if _takes_value(option):
            paths = "_files -/" if _is_folder(option) else "_files" if _is_file(option) else ""
            does = paths or f"({' '.join(_values(option))})"
            value = f":{_clean(option.metavar or 'value')}:{does if does != '()' else ' '}"
        repeat = "*" if option.count else ""
        help = _clean(describe.flag_help(option))
        yield from (f"'{repeat}{name}[{help}]{value}'" for name in option.opts)


def _zsh_case(path: str, command: click.Command, depth: int = 2) -> str:
    """How zsh completes the words after a subcommand."""
    tabs = "\t" * depth
    own = " ".join(_zsh_flags(describe.flags(command)))
    inner = describe.subcommands(command)
    name = path.rpartition(" ")[2]
    if inner:
        cases = "\n".join(_zsh_case(f"{path} {n}", sub, depth + 1) for n, sub in inner.items())
        first = f"'1:subcommand:({' '.join(inner)})'"
        return (
            f"{tabs}{name})\n"
            f"{tabs}\t_arguments -S -C {own} $flags {first} '*:: :->rest'\n"
            f'{tabs}\t[ "$state" != rest ] || case $words[1] in\n{cases}\n{tabs}\tesac ;;'
        )
    kind, which = _arguments(path, command)
    does = {
        "words": f"'*:word:({which})'",
        "shims": f"'*:tool:($({_SHIMS}))'",
        "ids": f"'1:run: _sandrun_ids {which}'",
    }.get(kind, "")
    return f"{tabs}{name}) _arguments -S {own} $flags {does} ;;"


def _zsh(root: click.Command) -> str:
    found = describe.subcommands(root)
    described = [f"\t\t'{n}:{_clean(describe.short_help(c))}'" for n, c in found.items()]
    cases = [_zsh_case(name, command) for name, command in found.items() if name != "git"]
    return _ZSH.format(
        flags="\n".join(f"\t\t{flag}" for flag in _zsh_flags(describe.flags(root))),
        subcommands="\n".join(described),
        cases="\n".join(cases),
        ids=_IDS.format(which="$@"),
    )


_FISH = """\
complete -c sandrun -e
function __sandrun_at # the current subcommand, or + and the index at which the command starts
	set -l words (commandline -opc)
	set -l path ''
	set -l at 2
	while test $at -le (count $words)
		switch "$path:$words[$at]"
			case ':--'
				echo +
				echo (math $at + 1)
				return
{paths}
			case {valued}
				set at (math $at + 1)
			case '*:-*'
			case ':*'
				echo +
				echo $at
				return
		end
		set at (math $at + 1)
	end
	echo $path
end
function __sandrun_is
	set -l at (__sandrun_at)
	test "$at[1]" = "$argv"
end
function __sandrun_command
	set -l words (commandline -opc)
	set -l at (__sandrun_at)
	if test "$at[1]" = +
		complete -C (string join ' ' -- (string escape -- $words[$at[2]..-1]) (commandline -ct))
	else if not string match -q -- '-*' (commandline -ct)
		complete -C (commandline -ct)
	end
end
complete -c sandrun -f
complete -c sandrun -n '__sandrun_is +' -k -a '(__sandrun_command)'
complete -c sandrun -n 'test (commandline -opc)[-1] = git' -a unlock
complete -c sandrun -n 'string match -q "* git unlock *" -- (commandline -c)' \
	-a '--dry-run --force --restore'
complete -c sandrun -n '__sandrun_is' -a '(__sandrun_command)'"""


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _fish_flag(option: click.Option, condition: str) -> str:
    names = "".join(f" -l {n[2:]}" if n[:2] == "--" else f" -s {n[1:]}" for n in option.opts)
    value = ""
    if _takes_value(option):
        given = "(__fish_complete_directories)" if _is_folder(option) else " ".join(_values(option))
        value = " -x" + (f" -a {_quoted(given)}" if given else "")
        value = " -r -F" if _is_file(option) else value
    help = _quoted(describe.flag_help(option))
    return f"complete -c sandrun -n {_quoted(condition)}{names}{value} -d {help}"


def _fish(root: click.Command) -> str:
    nodes = list(_nodes(root))
    paths = ""
    for path, _command in nodes:
        above, _, name = path.rpartition(" ")
        if path != "git":
            paths += f"\t\t\tcase '{above}:{name}'\n\t\t\t\tset path '{path}'\n"
    flags = describe.flags(root)
    valued = " ".join(f"'*:{name}'" for name in _names(flags, _takes_value))
    lines = [_FISH.format(paths=paths.rstrip("\n"), valued=valued)]
    for name, command in describe.subcommands(root).items():
        help = _quoted(describe.short_help(command))
        lines.append(f"complete -c sandrun -n '__sandrun_is' -a {name} -d {help}")
    for path, command in nodes:
        here = f"-n {_quoted(f'__sandrun_is {path}')}"
        kind, which = _arguments(path, command)
        given = " ".join(describe.subcommands(command)) or {
            "words": which,
            "shims": f"({_SHIMS})",
            "ids": f"({_IDS.format(which=which)})",
        }.get(kind, "")
        if given:
            lines.append(f"complete -c sandrun {here} -a {_quoted(given)}")
        lines += [_fish_flag(o, f"__sandrun_is {path}") for o in describe.flags(command)]
    lines += [_fish_flag(option, "not __sandrun_is +") for option in flags]
    return "\n".join(lines)

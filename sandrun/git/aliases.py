"""Expand git aliases, so that `git co` is guarded as `git checkout`.

Only for words that are not git's own, which cannot be aliased. Each step runs one `git config`;
there are at most ten. A shell alias of git commands only needs the sum of their locks. What stays
unknown (another shell alias, a program `git-foo`, a loop) is foreign: it waits and holds nothing.
"""

import os
import sys

from sandrun.git import classify

assert sys.platform != "win32"

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_STEPS = 10
_SHELL = set("|&;<>()$`\n")


def needs(git: str, command: classify.Invocation, env: "Mapping[str, str]") -> int:
    """The locks that a command with an unknown word needs; `FOREIGN` if it stays unknown."""
    seen: set[str] = set()
    total = 0
    left = [command]
    while left:
        command = left.pop()
        needed = classify.needs(command)
        if needed is not None:
            total |= needed
            continue
        meant = _expand(git, command, env) if len(seen) < _STEPS else []
        if command.word in seen or not meant:
            return classify.FOREIGN
        seen.add(command.word)
        left += meant
    return total


def _expand(
    git: str, command: classify.Invocation, env: "Mapping[str, str]"
) -> "list[classify.Invocation]":
    """The git commands of an alias: one, or several of a shell alias (`!git add -A && git commit`).
    Empty: it is no alias, or it runs other programs."""
    text = _value(git, command, env)
    shell = text.lstrip()[:1] == "!"
    texts = text.lstrip()[1:].replace("&&", ";").replace("||", ";").split(";") if shell else [text]
    meant = []
    for number, part in enumerate(texts, 1):
        words = _split(part)
        if shell and (words[:1] != ["git"] or any(set(word) & _SHELL for word in words)):
            return []
        # The arguments after the alias belong to its last command.
        more = command.arguments if number == len(texts) else []
        found = classify.parse(words[shell:] + more)
        if not found.word:  # empty, or the `;` was in quotes
            return []
        found.options = command.options
        meant.append(found)
    return meant


def _value(git: str, command: classify.Invocation, env: "Mapping[str, str]") -> str:
    """The text of the alias, read with the -C, -c and --git-dir of the command line; '': none."""
    word = command.word
    if not word.replace("-", "").replace("_", "").isalnum() or not word.isascii():
        return ""
    # The second form is git 2.54's [alias "word"] command = ...
    pattern = f"^alias\\.{word}(\\.command)?$"
    argv = [git, *command.options, "config", "--null", "--get-regexp", pattern]
    text = _output(argv, env)
    # The last one counts; each is a key, a newline and a value.
    return text.rstrip("\0").rpartition("\0")[2].partition("\n")[2]


def _output(argv: "list[str]", env: "Mapping[str, str]") -> str:
    read_end, write_end = os.pipe()
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    try:
        pid = os.posix_spawn(
            argv[0],
            argv,
            env,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, null, 0),
                (os.POSIX_SPAWN_DUP2, write_end, 1),
                (os.POSIX_SPAWN_DUP2, null, 2),
            ],
        )
    except OSError:
        os.close(read_end)
        return ""
    finally:
        os.close(write_end)
        os.close(null)
    with open(read_end, "rb") as pipe:
        text = os.fsdecode(pipe.read())
    return text if os.waitpid(pid, 0)[1] == 0 else ""


def _split(text: str) -> "list[str]":
    """The words as split by git's split_cmdline; none if a quote is not closed."""
    words: list[str] = []
    word = ""
    open_word = False
    quote = ""
    at = 0
    while at < len(text):
        letter = text[at]
        at += 1
        if not quote and letter.isspace():
            if open_word:
                words.append(word)
            word, open_word = "", False
            continue
        open_word = True
        if not quote and letter in "'\"":
            quote = letter
        elif letter == quote:
            quote = ""
        else:
            if letter == "\\" and quote != "'":
                letter, at = text[at : at + 1], at + 1
            word += letter
    if open_word:
        words.append(word)
    return [] if quote else words

"""Which of git's lock files each command takes, beside what `sandrun.git.classify` says.

`python3 -m tests.peers.git_locks [GIT]` prints the table for the git at hand, as strace(1) sees it:
a row is a command line, what it needs by our table, the locks that it made, and what is wrong. Read
it when a new git comes out.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from sandrun.git import classify
from sandrun.git.classify import ALL, REFRESH, REFS, REMOTE, TREE
from tests import gitbox

READING = """
status | diff | diff HEAD | diff --cached | diff-index HEAD | diff-files | describe --tags --dirty
log -2 | show | blame a | grep e | ls-files | ls-tree HEAD | rev-parse HEAD | for-each-ref
branch | branch -a | branch --contains HEAD | tag | tag -n | stash list | stash show | remote -v
worktree list | worktree prune -n | config -l | config user.name | reflog | notes | notes get-ref
symbolic-ref HEAD | submodule status | bisect log | clean -n
apply -R --check ../p | apply -R --stat --summary ../p | apply --check --cached ../p | prune -n
prune-packed -n | push --dry-run origin main | remote prune -n origin | remote show origin
replace -l | replace | fsck | count-objects -v | bundle create ../b main | hash-object -w a
cherry side | range-diff main...side | merge-base main side | rev-list --all | shortlog HEAD
diff-tree HEAD | archive HEAD | fast-export main | format-patch --stdout -1 | ls-remote origin
show-ref | name-rev HEAD | var GIT_EDITOR | whatchanged -1 --i-still-use-this | check-ignore a
stash export --print | maintenance is-needed | repo info layout.bare | last-modified
refs list | refs exists refs/heads/main | refs verify | merge-tree main side | stripspace
"""
WRITING = """
add a | commit -qam x | commit --amend -qm x | rm -q --cached a | mv a b | reset -q HEAD~
reset -q --hard | restore a | checkout -q side | checkout -qb x | switch -qc x | stash
stash pop | stash drop | merge -q side | rebase -q side | cherry-pick side | revert --no-edit HEAD
branch x | branch -d merged | branch -m side y | branch -f side HEAD | tag v2 | tag -d v1
notes add -m x HEAD~ | replace HEAD HEAD~ | config a.b c | config --unset user.x | pull -q
fetch -q | fetch -q --prune | fetch --dry-run | push -q origin main | push -q origin :side
remote add o x | remote rename origin o | remote remove origin | remote update
remote set-head origin -a
worktree add -q ../w2 | worktree remove w | worktree prune | update-ref refs/heads/side HEAD
update-ref -d refs/heads/side | symbolic-ref HEAD refs/heads/side | update-index -q --refresh
read-tree HEAD | write-tree | apply -R ../p | apply --cached ../p | am -q ../mail | clean -fq
sparse-checkout set a | bisect start HEAD HEAD~ | gc -q | repack -adq | pack-refs --all | prune
reflog expire --expire=now --all | commit-graph write | multi-pack-index write
maintenance run | submodule sync | submodule update | submodule deinit -f sub | rerere
update-server-info | init -q | checkout-index -f a | stage a | refs migrate --ref-format=reftable
history reword HEAD | replay --onto main HEAD~..side | fast-import --quiet --force
filter-branch -f HEAD
"""
_TAKES = (
    (r"(index|HEAD)", TREE),
    (r"config(\.worktree)?", REFS),
    (r"shallow", REMOTE),
    (r"refs/remotes/.+", REMOTE | REFS),
    (r"(refs/.+|reftable/tables\.list)", TREE | REFS | REMOTE),
    (r"(gc\.pid|objects/.+)", ALL),
)
"""The turn that a lock belongs to, by its name below a git dir; one of several is enough. Not
packed-refs, for which git itself waits (core.packedRefsTimeout), nor what other repositories have:
submodules, a remote's, a worktree that is being made."""
_SKIPPED = "objects/maintenance"
"""With this one taken, `maintenance run --auto` does nothing and says nothing (builtin/gc.c)."""


def lines(text: str) -> list[list[str]]:
    """The command lines of a table above."""
    return [row.split() for line in text.strip().splitlines() for row in line.split(" | ")]


def prepared(box: gitbox.GitBox) -> Path:
    """A folder with a repository that has something for each of the lines above."""
    top = box.root / "all"
    top.mkdir()
    repo = box.make(top / "repo")

    def git(*words: str) -> str:
        return box.bare(*words, cwd=repo)

    box.make(top / "sub.git")
    git("init", "-q", "--bare", "../origin")
    git("remote", "add", "origin", "../origin")
    git("branch", "merged")
    git("submodule", "--quiet", "add", "../sub.git", "sub")
    git("commit", "-qm", "sub")
    git("push", "-qu", "origin", "main")
    git("checkout", "-qb", "side")
    (repo / "b").write_text("b\n")
    git("add", "b")
    git("commit", "-qm", "side")
    git("push", "-q", "origin", "side", "side:gone")
    git("fetch", "-q")
    (top / "mail").write_text(git("format-patch", "--stdout", "-1"))
    git("checkout", "-q", "main")
    (repo / "c").write_text("c\n")
    git("add", "c")
    git("commit", "-qm", "c")
    git("tag", "v1")
    git("notes", "add", "-m", "n")
    git("worktree", "add", "-q", "../w", "side~")
    box.bare("update-ref", "-d", "refs/heads/gone", cwd=top / "origin")
    (repo / "a").write_text("stashed\n")
    git("stash")
    (repo / "a").write_text("changed\n")
    (top / "p").write_text(git("diff"))
    return top


class Seen:
    """What a command line did: its exit code, and the locks that it made, by their names below
    `.git`; and what it needs by our table."""

    def __init__(self, line: list[str], code: int, made: list[str]) -> None:
        self.code = code
        self.made = made
        needs = classify.needs(classify.parse(line))
        self.needs = classify.UNKNOWN if needs is None else needs

    @property
    def wrong(self) -> list[str]:
        """The locks for which our table gives it no turn."""
        return [name for name in self.made if not self._has_turn(name)]

    def _has_turn(self, name: str) -> bool:
        if self.needs & REFRESH and name == "index.lock":
            return True
        name = name.removesuffix(".lock")
        of = next((turn for lock, turn in _TAKES if re.fullmatch(lock, name)), 0)
        return name == _SKIPPED or not of or bool(self.needs & (of | ALL))


def observe(box: gitbox.GitBox, top: Path, line: list[str]) -> Seen:
    """Run a git command line in a copy of what `prepared` made, under strace(1)."""
    place, trace = box.root / "copy", box.root / "trace"
    if classify.needs(classify.parse(line)) or not place.exists():
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(top, place, symlinks=True)
    if line in (["stash", "pop"], ["rebase", "-q", "side"]):
        box.bare("checkout", "-q", "a", cwd=place / "repo")
    traced = ["strace", "-fqqqo", str(trace), "-e", "trace=open,openat"]
    done = subprocess.run(
        [*traced, gitbox.GIT, *line],
        cwd=place / "repo",
        env={**box.env, "GIT_EDITOR": "true"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    paths = re.findall(r'"([^"]+\.lock)", [^)]*O_CREAT[^)]*\) = \d', trace.read_text())
    made = [re.sub("^(.*/)?[.]git/", "", path) for path in paths]
    return Seen(line, done.returncode, list(dict.fromkeys(made)))


def table(box: gitbox.GitBox) -> Iterator[tuple[str, Seen]]:
    """Each command line of the tables above, and what was seen."""
    top = prepared(box)
    for line in lines(READING) + lines(WRITING):
        yield " ".join(line), observe(box, top, line)


def _names(needs: int) -> str:
    bits = {TREE: "tree", REFS: "refs", REMOTE: "remote", ALL: "all", REFRESH: "refresh"}
    return "+".join(name for bit, name in bits.items() if needs & bit) or "-"


def main() -> None:
    """Print the table."""
    if len(sys.argv) > 1:
        gitbox.GIT = sys.argv[1]
    print(subprocess.check_output([gitbox.GIT, "--version"], text=True).strip())
    with tempfile.TemporaryDirectory() as folder:
        box = gitbox.GitBox(Path(folder))
        for line, seen in table(box):
            end = f" (exit {seen.code})" if seen.code else ""
            print(f"{line:42} {_names(seen.needs):16} {' '.join(seen.made) or '-'}{end}", end="")
            print(f"  WRONG: {' '.join(seen.wrong)}" if seen.wrong else "")
        box.close()


if __name__ == "__main__":
    main()

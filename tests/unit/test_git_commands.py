"""Which locks a git command line needs, by the command line alone."""

import subprocess
from pathlib import Path

import pytest

from sandrun.git import aliases, classify
from sandrun.git.classify import ALL, REFS, REMOTE, TREE
from tests.gitbox import GIT, GitBox

READS = """
log -3 | -C dir show | --no-pager -c a=b log | rev-parse HEAD | cat-file --batch
branch | branch -a | branch -vv | branch --list x | branch --show-current | branch --contains HEAD
branch --sort=-committerdate | tag | tag -l v* | tag -n3 | tag --contains HEAD | tag -n x
stash list | stash show -p | remote | remote -v | remote get-url origin | worktree list
config --get a.b | config -l | config user.name | config --global user.name | config get a.b
config -f x --get a | reflog | reflog show | notes | notes show | submodule status | submodule
symbolic-ref HEAD | symbolic-ref --short HEAD | bisect log | sparse-checkout list | clean -n
add --help | commit -h | --version | --help | --exec-path | | --list-cmds=main | clone x y
hash-object -w f | receive-pack . | hook run x | --paginate log | -p show | diff --cached
diff --no-index a b | describe | describe --tags | status -h | repo info | diff-pairs -z
url-parse x | format-rev HEAD | replay --ref-action=print a..b
apply --check p | apply --stat --summary p | apply --numstat --index p
maintenance is-needed --auto | stash export --print | replace | replace -l x | replace --format=long
notes get-ref | prune -n | prune-packed --dry-run | remote prune -n o | worktree prune -v -n
push --dry-run o main | lfs env | lfs ls-files | lfs smudge x | lfs push o main
annex whereis x | annex get x | annex assistant | annex smudge --clean x | annex --help
"""
REFRESHES = """
status = | -C dir status --short = | --no-pager -c a=b diff = paged | diff HEAD = paged
describe --dirty = locks | describe --dirty=-x --tags = locks
"""
WRITES = """
branch x = refs | branch -d x = refs | branch -m y = refs | branch --edit-description = refs
tag v1 = refs | tag -d v1 = refs | tag -a v1 -m x = refs | config a.b c = refs
config --unset a.b = refs | config --global a b = refs | config edit = refs | notes add = refs
worktree add p = refs remote | remote add o u = refs remote | gc = all | reflog expire --all = all
pack-refs = all | symbolic-ref HEAD refs/heads/x = tree refs | symbolic-ref -d X = tree refs
update-ref a b = tree refs | add . = tree | commit -m x = tree | -C d commit = tree
--git-dir=x commit = tree | --git-dir x commit = tree | -c a=b commit = tree
--work-tree x add . = tree | rebase -i = tree | reset --hard = tree | clean -f = tree
stash = tree refs | stash push = tree refs | stash pop = tree refs | checkout -b x = tree refs
bisect run x = tree refs remote | submodule update = tree refs remote
fetch = remote | push = remote | pull = tree remote | replay a..b = tree refs
history reword HEAD = tree refs | apply p = tree | apply --stat --apply p = tree
maintenance run = all | stash export --to-ref r = tree refs | replace a b = refs
replace -d a = refs | notes merge x = refs | prune = all | remote prune o = refs remote
remote rename -n a = refs remote | worktree prune = refs remote | worktree add -n = refs remote
fetch --dry-run = remote | push -o -n origin main = remote | clean -f -e -n = tree
submodule foreach git log = tree refs remote
apply --stat --app p = tree | apply --check --no-check p = tree
lfs checkout = tree refs | lfs pull = tree refs | annex add x = tree refs remote
annex sync = tree refs remote | annex = tree refs remote
"""
BITS = {"tree": TREE, "refs": REFS, "remote": REMOTE, "all": ALL}


def _rows(text: str) -> list[str]:
    return [row.strip() for line in text.strip().splitlines() for row in line.split("|")]


@pytest.mark.parametrize("line", _rows(READS))
def test_reading_commands_need_no_locks(line: str) -> None:
    assert classify.needs(classify.parse(line.split())) == 0


@pytest.mark.parametrize("row", _rows(REFRESHES))
def test_some_reading_commands_may_refresh_the_index(row: str) -> None:
    line, _, more = row.partition(" =")
    wanted = {"": 0, "paged": classify.PAGED, "locks": classify.ALWAYS_LOCKS}[more.strip()]
    assert classify.needs(classify.parse(line.split())) == classify.REFRESH | wanted


@pytest.mark.parametrize("row", _rows(WRITES))
def test_writing_commands_need_their_locks(row: str) -> None:
    line, _, needs = row.rpartition(" = ")
    wanted = sum(BITS[name] for name in needs.split())
    assert classify.needs(classify.parse(line.split())) == wanted


def test_global_options() -> None:
    line = "-C a -C b --git-dir g --work-tree=w --bare -c x=y --namespace n add -C z"
    taken = classify.parse(line.split())
    assert taken.directories == ["a", "b"]
    assert taken.variables == {"GIT_DIR": "g", "GIT_WORK_TREE": "w"}
    assert taken.bare
    assert (taken.word, taken.arguments) == ("add", ["-C", "z"])
    assert taken.options == line.split()[:-3]


def test_every_command_of_this_git_is_known() -> None:
    words = subprocess.check_output([GIT, "--list-cmds=builtins"], text=True).split()
    unknown = {word for word in words if classify.needs(classify.parse([word, "x"])) is None}
    # Internal helpers of git, which users do not type, need all locks.
    helpers = {word for word in unknown if "--" in word or word.startswith(("merge-", "remote-"))}
    assert unknown == helpers


JJ_HARMLESS = "--version | -h | help | config list | util completion | version"
JJ_PROMPT = "log --ignore-working-copy | --ignore-working-copy st | -R d --ignore-working-copy st"
JJ_WORKS = "| log | st | new | --no-pager log | -R help st | -Rx st | --config help new"


def test_the_locks_of_jj_commands() -> None:
    def needs(line: str) -> "int | None":
        return classify.needs(classify.parse_other("jj", line.split()))

    assert not any(map(needs, _rows(JJ_HARMLESS) + _rows(JJ_PROMPT)))
    assert {needs(line) for line in _rows(JJ_WORKS)} == {TREE | REFS | REMOTE}
    assert needs("--ignore-working-copy bookmark set x") == TREE | REFS | REMOTE


@pytest.mark.parametrize("option", ["-R d", "-Rd", "-R=d", "--repository d", "--repository=d"])
def test_the_repository_of_a_jj_command_line(option: str) -> None:
    line = f"--color never {option} st -R x"
    assert classify.parse_other("jj", line.split()).directories == ["d"]


def test_which_commands_may_own_a_lock() -> None:
    harmless = ["cat-file --batch", "log", "fsmonitor--daemon run", "credential-cache--daemon s"]
    suspects = ["status", "commit -a", "gc --auto", "difftool", "my-alias", "diff", ""]
    assert all(classify.is_harmless(classify.parse(line.split())) for line in harmless)
    assert not any(classify.is_harmless(classify.parse(line.split())) for line in suspects)


@pytest.mark.parametrize(
    ("alias", "needs"),
    [
        ("checkout", TREE | REFS),
        ("commit --amend", TREE),
        ("log --format='%h %s'", 0),
        ('log --format="a b" -3', 0),
        ("branch", REFS),  # `git it x` is `git branch x`
        ("!git log", 0),
        ("!git log | cat", classify.FOREIGN),
        ("!git log -p | less -R", classify.FOREIGN),
        ("!make", classify.FOREIGN),
        ("!f() { git add .; }; f", classify.FOREIGN),
        ("!git add -A && git commit -m 'a b'", TREE),
        ("!git fetch; git branch", REMOTE | REFS),
        ("!git fetch && make", classify.FOREIGN),
        ("!git commit -m 'a;b'", classify.FOREIGN),
        ("!git add -A && git other", TREE | classify.REFRESH),
        ("it", classify.FOREIGN),
        ("other", classify.REFRESH),
        ("'open", classify.FOREIGN),
        (None, classify.FOREIGN),
    ],
)
def test_aliases(tmp_path: Path, alias: "str | None", needs: int) -> None:
    box = GitBox(tmp_path)
    box.bare("config", "alias.other", "status")
    if alias:
        box.bare("config", "alias.it", alias)
    command = classify.parse(["-C", str(box.repo), "it", "x"])
    assert classify.needs(command) is None
    assert aliases.needs(GIT, command, box.env) == needs


def test_an_alias_of_the_command_line(tmp_path: Path) -> None:
    box = GitBox(tmp_path)
    command = classify.parse(["-C", str(box.repo), "-c", "alias.it=add", "it", "x"])
    assert aliases.needs(GIT, command, box.env) == TREE


def test_a_loop_of_aliases_ends(tmp_path: Path) -> None:
    box = GitBox(tmp_path)
    for number in range(30):
        box.bare("config", f"alias.a{number}", f"a{number + 1}")
    command = classify.parse(["-C", str(box.repo), "a0"])
    assert aliases.needs(GIT, command, box.env) == classify.FOREIGN

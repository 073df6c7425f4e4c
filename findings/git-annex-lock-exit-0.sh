#!/bin/sh
# git-annex reports success for work that it did not do while another git holds index.lock.
#
# Version: git-annex 10.20261026 (PyPI); Debian 12's 10.20230126 does the same. With git 2.39.5.
# Behaviour: a `git commit -a` waits in its editor, as git does with index.lock in its hands. Beside it
# - `git annex add FILE` says "ok", "(recording state in git...)" and git's error, and ends with 0.
#   FILE is in no index; once the commit is over it is still untracked, though its content is in
#   .git/annex/objects and the file has become a link to it.
# - `git annex sync` says "commit", git's error and "ok", and ends with 0: nothing is committed.
# Plain `git add` and `git commit` end with 128 in the same place.
# Why it matters: a hook, a CI job or an agent that looks at the exit code goes on as if the data were
# recorded, and the next step pushes without it.
#
# Exit 0: still so. 1: changed, with a line for each difference. 2: cannot be tried here.
set -u
folder=$(mktemp -d) || exit 2
trap 'chmod -R u+w "$folder"; rm -rf "$folder"' EXIT
cd "$folder" || exit 2
python3 -m venv venv >/dev/null &&
    venv/bin/pip install --quiet --disable-pip-version-check git-annex==10.20261026 || exit 2
PATH=$folder/venv/bin:$PATH
export HOME="$folder" GIT_CONFIG_NOSYSTEM=1
git config --global user.name Name
git config --global user.email name@example.org
git init -q repo && cd repo || exit 2
git annex init -q || exit 2
echo one >a && git add a && git commit -qm one || exit 2
echo two >a
mkfifo "$folder/go"
printf '#!/bin/sh\n: >"%s/here"; read -r _ <"%s/go"; echo two >"$1"\n' "$folder" "$folder" >"$folder/editor"
chmod +x "$folder/editor"
GIT_EDITOR=$folder/editor git commit -qa &
while [ ! -e "$folder/here" ]; do sleep 0.1; done

changed=0
expect() { # WHAT FOUND WANTED
    echo "$1: $2"
    [ "$2" = "$3" ] || { echo "changed: it was $3" && changed=1; }
}
echo data >b
before=$(git rev-parse HEAD)
git add b 2>err
expect "exit code of git add" $? 128
git annex add b >out 2>err
expect "exit code of git annex add" $? 0
expect "errors about index.lock" "$(grep -c 'index.lock.: File exists' err)" 1
expect "it says ok" "$(grep -c 'ok$' out)" 1
git annex sync >out 2>err
expect "exit code of git annex sync" $? 0
expect "errors about index.lock" "$(grep -c 'index.lock.: File exists' err)" 1
expect "HEAD has moved" "$([ "$(git rev-parse HEAD)" = "$before" ] && echo no)" no
echo >"$folder/go"
wait
expect "state of the file" "$(git status --porcelain b)" "?? b"
expect "it is a link now" "$([ -L b ] && echo yes)" yes
exit $changed

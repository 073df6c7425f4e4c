"""Runs in units of systemd: enclosing settings apply to them, and they end when they should.

Runs as root in the laboratory, on each of its releases:
vagrant/lab run [--suite trixie] -- pytest -m vm tests/vm/test_units.py
"""

import contextlib
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness import SCALE

LAB = os.environ.get("SANDRUN_LAB", "")
HOLD = 'python3 -c \'b = bytearray(b"x") * (200 << 20); print("held")\''
SLEEP = "sleep 1000"

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(LAB != "v2", reason="about cgroup v2"),
    pytest.mark.skipif(os.geteuid() != 0, reason="makes users and mounts: runs as root"),
]


def until(check: "Callable[[], object]", seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds * SCALE
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def systemctl(*words: str) -> str:
    return subprocess.run(
        ["systemctl", *words], capture_output=True, text=True, check=False
    ).stdout.strip()


def in_unit(
    script: str, *properties: str, unit: str = "", slice: str = "", user: str = ""
) -> "tuple[str, str]":
    """The output of a shell in its own service that continues after the script, then the exit
    code."""
    out, err = Path(f"/run/test-out-{os.getpid()}"), Path(f"/run/test-err-{os.getpid()}")
    for file in (out, err):
        file.unlink(missing_ok=True)
        file.touch()
        file.chmod(0o666)
    command = ["systemd-run", "-q", "--wait", "--collect", f"--unit={unit or 'test-agent'}"]
    command += [f"--slice={slice}"] if slice else []
    command += [f"--uid={user}", f"--gid={user}"] if user else []
    for value in (f"StandardOutput=append:{out}", f"StandardError=append:{err}", *properties):
        command += ["-p", value]
    subprocess.run([*command, "sh", "-c", f'{script}; echo "code $?"'], check=False, cwd="/")
    return out.read_text(), err.read_text()


@contextlib.contextmanager
def slice_with(*limits: str) -> "Iterator[str]":
    name = "testci.slice"
    file = Path(f"/run/systemd/system/{name}")
    file.write_text("[Slice]\n" + "".join(f"{limit}\n" for limit in limits))
    systemctl("daemon-reload")
    try:
        yield name
    finally:
        systemctl("stop", name)
        file.unlink()
        systemctl("daemon-reload")


def test_the_limits_of_a_slice_apply_to_its_runs() -> None:
    with slice_with("MemoryMax=100M", "MemorySwapMax=0") as around:
        out, err = in_unit("sandrun -v -- cat /proc/self/cgroup", slice=around)
        run = r"testci-sandrun_(\w+).slice/sandrun-\1.scope/sandrun-\1/main"
        place = rf"0::/testci.slice/{run}\ncode 0\n"
        assert re.fullmatch(place, out), (out, err)
        assert "backend systemd" in err
        # 137 in any case; the kernel may take sandrun as well, which is in that slice too.
        out, err = in_unit(f"sandrun --pool off -m 400M -- {HOLD}", slice=around)
        assert out == "code 137\n", err


OWN = {
    "MemoryMax=300M": "memory.max = 314572800",
    "CPUWeight=50": "cpu.weight = 50",
    "AllowedCPUs=0": "cpuset.cpus = 0",
    "TasksMax=77": "pids.max = 77",
    "DevicePolicy=closed": "DevicePolicy",
    "IPAddressDeny=10.0.0.0/8": "IPAddressDeny",
    "CPUQuota=50%": "cpu.max = 50000 100000",
    "MemoryLow=10M": "memory.low = 10485760",
    "IOWeight=50": "io.weight = default 50",
}


@pytest.mark.parametrize("own", OWN)
def test_a_run_does_not_escape_the_settings_of_its_unit(own: str) -> None:
    out, err = in_unit("sandrun -v -- cat /proc/self/cgroup", own)
    assert re.search(rf"systemd: a new scope would escape {re.escape(OWN[own])}\b", err), err
    assert "no kernel enforces the limits: a new scope would escape" in err
    assert "hint: systemctl edit test-agent.service, add [Service] Delegate=yes" in err
    assert out == "0::/system.slice/test-agent.service\ncode 0\n", (out, err)
    out, err = in_unit("sandrun --require kernel -- echo ran", own)
    assert out == "code 125\n"
    assert "would escape" in err


@pytest.mark.parametrize("own", OWN)
def test_a_run_stays_in_a_delegated_unit_with_settings(own: str) -> None:
    twice = "sandrun --require kernel -- cat /proc/self/cgroup"
    out, err = in_unit(f"{twice} && {twice}", own, "Delegate=yes")
    assert re.fullmatch(
        r"(0::/system.slice/test-agent.service/sandrun-\w+/main\n){2}code 0\n", out
    ), (out, err)


def test_in_a_delegated_unit_both_limits_are_enforced() -> None:
    limit = ("MemoryMax=100M", "MemorySwapMax=0", "Delegate=yes", "OOMPolicy=continue")
    out, err = in_unit(f"sandrun -m 400M -- {HOLD}", *limit)
    assert out == "code 137\n", err
    out, err = in_unit(f"sandrun -m 60M -- {HOLD}", *limit)
    assert out == "code 137\n", err
    assert "60.0 MiB" in err


def living(word: str) -> "list[str]":
    """The pids of the processes with that command line."""
    found = subprocess.run(["pgrep", "-f", "-x", word], capture_output=True, text=True, check=False)
    return found.stdout.split()


@contextlib.contextmanager
def service(name: str, script: str, *properties: str, user: str = "") -> "Iterator[None]":
    command = ["systemd-run", "-q", "--collect", f"--unit={name}"]
    command += [f"--uid={user}", f"--gid={user}"] if user else []
    for value in properties:
        command += ["-p", value]
    subprocess.run([*command, "sh", "-c", script], check=True, cwd="/")
    try:
        yield
    finally:
        systemctl("kill", "-s", "KILL", f"{name}.service")
        systemctl("stop", f"{name}.service")


STARTS = {
    "alone": f"exec sandrun -- {SLEEP}",
    "below an agent": f"sandrun -- {SLEEP}; true",
    "nohup": f"nohup sandrun -- {SLEEP} & wait; true",
    "detached": f"sandrun --detach -- {SLEEP} & wait; true",
}


@pytest.mark.parametrize("way", STARTS)
@pytest.mark.parametrize("own", ["Type=exec", "Type=oneshot", "CPUWeight=50", "Delegate=yes"])
def test_stopping_a_unit_ends_its_run(way: str, own: str) -> None:
    block = ["--no-block"] if own == "Type=oneshot" else []
    command = ["systemd-run", "-q", "--collect", *block, "--unit=test-stop", "-p", own]
    subprocess.run([*command, "sh", "-c", STARTS[way]], check=True, cwd="/")
    until(lambda: living(SLEEP))
    systemctl("stop", "test-stop.service")
    until(lambda: not living(SLEEP), 20)
    # The name is free when no unit that is bound to this one is left.
    until(lambda: systemctl("show", "-P", "LoadState", "test-stop.service") != "loaded")


@pytest.mark.parametrize("script", [f"exec sandrun -- {SLEEP}", f"sandrun -- {SLEEP}; true"])
def test_stopping_a_users_service_ends_its_run(ci: str, script: str) -> None:
    """A unit of one manager cannot be bound to one of another: the run ends with its parent."""
    subprocess.run(["loginctl", "enable-linger", ci], check=True)
    until(lambda: active(manager_of(ci)))
    with service("test-users", script, user=ci):
        until(lambda: living(SLEEP))
        place = Path(f"/proc/{living(SLEEP)[0]}/cgroup").read_text()
        assert f"/{manager_of(ci)}/app.slice/" in place
        systemctl("stop", "test-users.service")
        until(lambda: not living(SLEEP), 20)


# Takes each from the kernel's queue at once, so that a second one cannot melt into the first.
HEARS = """
import signal, sys, time
with open(sys.argv[1], "w") as file:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM]); print("up", file=file, flush=True)
    while signal.sigtimedwait([signal.SIGTERM], 1000 if file.tell() == 3 else 1):
        print("told", file=file, flush=True)
"""


@pytest.mark.parametrize("own", ["Type=exec", "CPUWeight=50", "Delegate=yes"])
def test_stopping_a_unit_signals_the_command_once(own: str) -> None:
    """It is in our unit, whatever that is, and systemd signals each process of that."""
    heard, script = Path("/run/test-heard"), Path("/run/test-hears")
    heard.unlink(missing_ok=True)
    script.write_text(HEARS)
    command = ["systemd-run", "-q", "--collect", "--unit=test-tell", "-p", own, "sandrun", "--"]
    subprocess.run([*command, "python3", script, heard], check=True, cwd="/")
    until(lambda: heard.exists() and heard.read_text())
    until(lambda: living("run-witness"))
    systemctl("stop", "test-tell.service")
    assert heard.read_text().split() == ["up", "told"]


def test_a_run_outlives_a_service_with_kill_mode_process() -> None:
    with service("test-stay", STARTS["detached"], "KillMode=process"):
        until(lambda: living(SLEEP))
        (run,) = living(SLEEP)
        systemctl("stop", "test-stay.service")
        until(lambda: systemctl("is-active", "test-stay.service") == "inactive")
        time.sleep(0.5)
        assert living(SLEEP) == [run]
        os.kill(int(run), 15)
        until(lambda: not living(SLEEP))


def test_a_service_may_start_a_run_while_it_stops() -> None:
    out = Path("/run/test-stopping")
    out.unlink(missing_ok=True)
    stop = f"ExecStop=sh -c 'sandrun -v -- cat /proc/self/cgroup >{out} 2>&1'"
    with service("test-stopping", SLEEP, stop):
        systemctl("stop", "test-stopping.service")
    said = out.read_text()
    assert re.search(r"^0::/.*/sandrun-\w+/main$", said, re.MULTILINE), said


def _ended(pids: bytes) -> bytes:
    for pid in map(int, pids.split()):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 9)
        with contextlib.suppress(ChildProcessError):  # we are the subreaper of orphans
            os.waitpid(pid, os.WNOHANG)
    return pids


@pytest.fixture
def ci() -> "Iterator[str]":
    """A user without a session; a test may make it linger."""
    name = "unit-ci"
    subprocess.run(["useradd", "-m", name], check=True)
    yield name
    subprocess.run(["loginctl", "disable-linger", name], check=False)
    subprocess.run(["loginctl", "terminate-user", name], check=False, capture_output=True)
    left = ["pgrep", "-u", name]
    until(lambda: not _ended(subprocess.run(left, capture_output=True, check=False).stdout))
    subprocess.run(["userdel", "-r", name], check=True, stderr=subprocess.DEVNULL)


@contextlib.contextmanager
def login(name: str, script: str = "exec sleep 2000") -> "Iterator[subprocess.Popen[str]]":
    """Run a script in a session of that user, opened by PAM."""
    env = {"PATH": os.environ["PATH"]}
    command = ["runuser", "-l", name, "-c", f"export PATH={env['PATH']}; {script}"]
    # In a unit of its own without a session: what PAM opens is then the user's own.
    started = subprocess.Popen(
        ["systemd-run", "-q", "--scope", "--", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd="/",
    )
    try:
        yield started
    finally:
        started.kill()
        started.communicate()


def uid_of(name: str) -> str:
    return subprocess.check_output(["id", "-u", name], text=True).strip()


def manager_of(name: str) -> str:
    return f"user@{uid_of(name)}.service"


def active(unit: str) -> bool:
    return systemctl("is-active", unit) == "active"


def test_a_job_of_a_service_outlives_the_logout_of_its_user(ci: str) -> None:
    with login(ci) as session:
        until(lambda: active(manager_of(ci)))
        with service("test-job", f"sandrun -- {SLEEP}; true", user=ci):
            until(lambda: living(SLEEP))
            run = living(SLEEP)
            session.kill()
            for sleeper in living("sleep 2000"):
                os.kill(int(sleeper), 9)
            until(lambda: not active(manager_of(ci)), 120)
            assert living(SLEEP) == run


LET_GO = ["nohup sandrun", "sandrun --detach"]


SAID = Path("/tmp/unit-said")


def let_go(way: str) -> str:
    """A script for a login: it starts a run in that way and exits as soon as that runs."""
    SAID.unlink(missing_ok=True)  # another user's cannot be written to (fs.protected_regular)
    seen = f"until pgrep -f -x '{SLEEP}'; do sleep 0.1; done"
    return f'{way} -- {SLEEP} >{SAID} 2>&1 & timeout 100 sh -c "{seen}"'


@pytest.mark.parametrize("way", LET_GO)
def test_a_detached_job_outlives_the_logout(ci: str, way: str) -> None:
    with login(ci, let_go(way)) as session:
        until(lambda: living(SLEEP))
        run = living(SLEEP)
        session.wait(60 * SCALE)
        # What logind does some seconds after the last logout, unless something of a session lives.
        systemctl("stop", manager_of(ci))
        assert living(SLEEP) == run
        said = SAID.read_text()
        assert "no kernel enforces the limits: the run must outlive a logout" in said
        assert f"hint: loginctl enable-linger {ci}" in said
        os.kill(int(run[0]), 15)
        until(lambda: not living(SLEEP))


@pytest.mark.parametrize("way", ["setsid sandrun", "sandrun"])
def test_a_detached_job_keeps_the_manager_alive(ci: str, way: str) -> None:
    with login(ci, let_go(way)) as session:
        until(lambda: living(SLEEP))
        run = living(SLEEP)
        session.wait(60 * SCALE)
        state = ["loginctl", "show-user", ci, "-P", "State"]
        until(lambda: subprocess.check_output(state, text=True).strip() == "closing")
        place = Path(f"/proc/{run[0]}/cgroup").read_text()
        assert f"/{manager_of(ci)}/app.slice/app-sandrun.slice/app-sandrun-sandrun_" in place
        # logind ends the manager unless a process of the session lives.
        scopes = Path(f"/sys/fs/cgroup/user.slice/user-{uid_of(ci)}.slice").glob("session-*.scope")
        assert [file for scope in scopes if (file := scope / "cgroup.procs").read_text()]
        os.kill(int(run[0]), 15)
        until(lambda: not living(SLEEP))
        until(lambda: not active(manager_of(ci)), 120)


@pytest.mark.parametrize("way", LET_GO)
def test_a_job_of_root_outlives_the_logout(way: str) -> None:
    systemctl("start", "user@0.service")
    with login("root", let_go(way)) as session:
        until(lambda: living(SLEEP))
        run = living(SLEEP)
        session.wait(60 * SCALE)
        systemctl("stop", "user@0.service")
        until(lambda: not active("user@0.service"))
        assert living(SLEEP) == run
        place = Path(f"/proc/{run[0]}/cgroup").read_text()
        inside = r"user-0-sandrun_(\w+).slice/sandrun-\1.scope/sandrun-\1/main"
        assert re.match(rf"0::/user.slice/user-0.slice/{inside}$", place)
        os.kill(int(run[0]), 15)
        until(lambda: not living(SLEEP))


def test_doctor_reports_whether_runs_outlive_the_logout(ci: str) -> None:
    with login(ci, "sandrun doctor") as session:
        said, _ = session.communicate(timeout=120 * SCALE)
    assert f"the manager of {ci} ends at the last logout" in said
    assert f"loginctl enable-linger {ci}" in said


def test_a_lingering_user_has_a_kernel_container_in_all_cases(ci: str) -> None:
    subprocess.run(["loginctl", "enable-linger", ci], check=True)
    until(lambda: active(manager_of(ci)))
    place = "--require kernel -- cat /proc/self/cgroup"
    out, err = in_unit(f"sandrun {place}; sandrun --detach {place}; nohup sandrun {place}", user=ci)
    run = f"/{manager_of(ci)}/app.slice/app-sandrun.slice/app-sandrun-sandrun_"
    assert out.count(run) == 3, (out, err)
    out, err = in_unit("sandrun -v -- cat /proc/self/cgroup", "MemoryMax=300M", user=ci)
    assert "would escape memory.max" in err
    out, err = in_unit("sandrun -v -- cat /proc/self/cgroup", "IPAddressDeny=10.0.0.0/8", user=ci)
    assert "would escape IPAddressDeny of test-agent.service" in err
    out, err = in_unit(f"sandrun {place}", "MemoryMax=300M", "Delegate=yes", user=ci)
    assert "/system.slice/test-agent.service/sandrun-" in out, err


def test_a_user_in_a_session_has_a_kernel_container(ci: str) -> None:
    with login(ci, "sandrun --require kernel -- cat /proc/self/cgroup") as session:
        said, _ = session.communicate(timeout=60 * SCALE)
    assert "/app.slice/app-sandrun.slice/app-sandrun-sandrun_" in said


def in_user_unit(name: str, *properties: str) -> str:
    """The stderr of `sandrun --require kernel` below a shell in a service of the user's manager."""
    words = " ".join(f"-p {value}" for value in properties)
    start = f"systemd-run --user --quiet --wait --collect --pipe --unit=test-mine {words}"
    run = "$(command -v sandrun) --require kernel -- cat /proc/self/cgroup"
    with login(name, f'{start} sh -c "{run}; true"') as session:
        said, _ = session.communicate(timeout=60 * SCALE)
    return said


def test_a_run_does_not_escape_a_unit_of_a_users_manager(ci: str) -> None:
    said = in_user_unit(ci)
    run = r"app-sandrun_(\w+).slice/sandrun-\1.scope/sandrun-\1/main"
    assert re.search(rf"/{manager_of(ci)}/app.slice/{run}$", said)
    said = in_user_unit(ci, "CPUWeight=50")
    assert "a new scope would escape cpu.weight = 50" in said
    assert "hint: systemctl --user edit test-mine.service" in said
    said = in_user_unit(ci, "CPUWeight=50", "Delegate=yes")
    assert re.search(r"/app.slice/test-mine.service/sandrun-\w+/main$", said), said


def test_a_run_does_not_escape_a_slice_for_a_users_manager(ci: str) -> None:
    subprocess.run(["loginctl", "enable-linger", ci], check=True)
    until(lambda: active(manager_of(ci)))
    with slice_with("MemoryMax=300M") as around:
        run = "sandrun --require kernel -- true"
        out, err = in_unit(run, slice=around, user=ci)
        assert out == "code 125\n"
        assert "would escape memory.max = 314572800 of /sys/fs/cgroup/testci.slice" in err
        assert in_unit(run, "Delegate=yes", slice=around, user=ci)[0] == "code 0\n"

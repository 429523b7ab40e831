"""Servers on a leash: what ends them, and what they leave behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import webhook
from webhook.demo.leash import Leashed

ROOT = Path(webhook.__file__).parents[1]
ENVIRONMENT = {"PATH": os.defpath}
OWNER = """
import os, sys, time
from pathlib import Path
from webhook.demo.leash import Leashed
leashed = Leashed.start("sleep", ["sh", "-c", "echo $$; exec sleep 60"], log=Path(sys.argv[1]), environment=os.environ)
if sys.argv[2:] == ["and-fork"] and os.fork() == 0:
    time.sleep(3)
    os._exit(0)
time.sleep(60)
"""


@pytest.fixture
def log(tmp_path):
    return tmp_path / "command.log"


def eventually(holds):
    deadline = time.monotonic() + 10
    while not (value := holds()):
        assert time.monotonic() < deadline, "it did not happen within 10 s"
        time.sleep(0.02)
    return value


def runs(pid):
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return state.strip() != "" and not state.startswith("Z")


def pid_in(log):
    return int(eventually(lambda: log.exists() and log.read_text().strip()))


@pytest.fixture
def owner(log):
    """Start Python processes that each own a leashed `sleep`."""
    owners = []

    def start(*arguments):
        owners.append(subprocess.Popen([sys.executable, "-c", OWNER, log, *arguments], cwd=ROOT))
        return owners[-1]

    yield start
    for process in owners:
        process.kill()
        process.wait()


def test_a_command_that_exits_leaves_its_code_and_its_output(log):
    """A server that dies at its start can be explained: by its exit code and the end of its log."""
    leashed = Leashed.start("sh", ["sh", "-c", "echo first; echo last >&2; exit 3"], log=log, environment=ENVIRONMENT)

    eventually(lambda: leashed.exit_code is not None)

    assert leashed.exit_code == 3
    assert leashed.tail(1) == "last"
    leashed.stop()


def test_a_command_sees_only_the_environment_it_was_given(log):
    """Nothing of the caller's environment (proxies, kubeconfigs) reaches a server."""
    leashed = Leashed.start("env", ["env"], log=log, environment={**ENVIRONMENT, "GIVEN": "yes"})
    eventually(lambda: leashed.exit_code is not None)
    leashed.stop()

    names = {line.split("=")[0] for line in log.read_text().splitlines()}

    assert names - {"LC_CTYPE", "PWD", "SHLVL", "_"} == {"PATH", "GIVEN"}  # Python and shells add these


def test_stopping_asks_first(log):
    """A server gets TERM, and the time to finish."""
    script = "trap 'echo finished; exit 0' TERM; echo up; while :; do sleep 0.05; done"
    leashed = Leashed.start("sh", ["sh", "-c", script], log=log, environment=ENVIRONMENT)
    eventually(lambda: log.read_text() == "up\n")

    leashed.stop()

    assert leashed.tail(1) == "finished"
    assert leashed.exit_code == 0


def test_stopping_ends_what_does_not_listen(log):
    """A server that ignores TERM is killed when its grace is over."""
    script = "trap '' TERM; echo $$; while :; do sleep 0.05; done"
    leashed = Leashed.start("sh", ["sh", "-c", script], log=log, environment=ENVIRONMENT, grace=0.2)
    command = pid_in(log)

    leashed.stop()

    assert not runs(command)
    assert leashed.exit_code == 128 + signal.SIGKILL


@pytest.mark.parametrize("arguments", [(), ("and-fork",)], ids=["alone", "with a fork that holds the pipe open"])
def test_a_killed_owner_leaves_nothing_running(owner, log, arguments):
    """SIGKILL gives the owner no chance to clean up, and its command ends all the same."""
    process = owner(*arguments)
    command = pid_in(log)

    process.kill()
    process.wait()

    eventually(lambda: not runs(command))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_killing_every_python_leaves_nothing_running(owner, log):
    """The command ends even if the keeper that would end it is killed with the owner."""
    process = owner()
    command = pid_in(log)
    keeper = int(Path(f"/proc/{command}/stat").read_text().rsplit(")", 1)[1].split()[1])

    process.kill()
    os.kill(keeper, signal.SIGKILL)

    eventually(lambda: not runs(command))

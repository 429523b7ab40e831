"""`driftgate demo` without a control plane, from beginning to end; its parts. The real one is in tests/e2e."""

import os
import signal
import subprocess
import sys

import pytest

from tests.recordings import argocd_deployment
from webhook.admission import GroupVersionResource, UserInfo
from webhook.cluster import Cluster
from webhook.demo.recordings import Write, moved
from webhook.demo.stand_in import StandIn, patched_with
from webhook.demo.terminal import Terminal, Unexpected
from webhook.errors import ClusterUnavailable

DEPLOYMENTS = GroupVersionResource(group="apps", version="v1", resource="deployments")


def start_demo(directory, *options, **environment):
    """Start the demo, with nothing of the user's and all its temporary files in `directory`."""
    inherited = {name: value for name, value in os.environ.items() if name != "KUBEBUILDER_ASSETS"}
    return subprocess.Popen(
        [sys.executable, "-m", "webhook", "demo", *options],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**inherited, "TMPDIR": str(directory), **environment},
    )


def left_of(directory):
    """Return the files in a folder, and the processes that were told of it."""
    processes = subprocess.run(["ps", "-axww", "-o", "args="], capture_output=True, text=True, check=True).stdout
    return [*map(str, directory.iterdir()), *(line for line in processes.splitlines() if str(directory) in line)]


def test_the_story_is_told_without_a_control_plane(tmp_path):
    """It says how to get one, shows refusals, break-glass, issue and audit log, and leaves nothing behind."""
    demo = start_demo(tmp_path, "--once", XDG_CACHE_HOME="/nowhere")
    told, _ = demo.communicate(timeout=60)

    assert demo.returncode == 0, told
    for expected in (
        "make control-plane",
        "$ kubectl scale deployment web -n guestbook --replicas=5  (recorded from a real API server)",
        'admission webhook "scale.driftgate.dev" denied the request: Deployment guestbook/web is managed by Argo CD',
        "alice has no right to it",
        "Warning: break-glass until",
        "Deployment guestbook/web is held by break-glass",
        "title: 'Break-glass: Deployment guestbook/web changed by bob'",
        "| `.spec.replicas` | `3` | `5` |",
        "BreakGlass Granted",
        "records, chain intact",
        "Warning: break-glass ends here",
        "deployment.apps/web configured",
    ):
        assert expected in told
    assert "\x1b" not in told
    assert left_of(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_cleanly(tmp_path, number):
    """Whoever ends it is obeyed at once: no error, nothing running, no files."""
    demo = start_demo(tmp_path, "--recorded")
    with demo.stdout:
        while "making certificates" not in demo.stdout.readline():
            assert demo.poll() is None
        demo.send_signal(number)
        told = demo.stdout.read()

    assert demo.wait(timeout=30) == 0, told
    assert "Traceback" not in told
    assert left_of(tmp_path) == []


def test_a_folder_with_other_things_is_refused(tmp_path):
    """What somebody keeps there is not mixed with the demo's files."""
    (tmp_path / "mine").touch()
    demo = start_demo(tmp_path, "--recorded", "--directory", str(tmp_path))
    told, _ = demo.communicate(timeout=30)

    assert demo.returncode == 1
    assert told == f"Error: {tmp_path} is not empty: name a new folder\n"


def test_driftgate_takes_the_stand_in_for_an_api_server(tmp_path):
    """It finds the object, learns who may break the glass, patches, and finds what is labelled."""
    with StandIn(may_break_glass="bob") as stand_in:
        stand_in.store(argocd_deployment())
        stand_in.write_kubeconfig(tmp_path / "kubeconfig")
        cluster = Cluster(tmp_path / "kubeconfig")
        label = {"op": "add", "path": "/metadata/labels/example.com~1on-call", "value": "yes"}

        assert cluster.get(DEPLOYMENTS, "guestbook", "web") == argocd_deployment()
        assert cluster.get(DEPLOYMENTS, "guestbook", "other") is None
        assert cluster.may_break_glass(UserInfo(username="bob"), DEPLOYMENTS, "guestbook", "web")
        assert not cluster.may_break_glass(UserInfo(username="alice"), DEPLOYMENTS, "guestbook", "web")
        assert list(cluster.stamped_objects("example.com/on-call=yes")) == []
        cluster.json_patch(DEPLOYMENTS, "guestbook", "web", [label])
        assert list(cluster.stamped_objects("example.com/on-call=yes")) == [(DEPLOYMENTS, stand_in.stored())]
        with pytest.raises(ClusterUnavailable):
            cluster.json_patch(DEPLOYMENTS, "guestbook", "web", [{**label, "op": "test", "value": "no"}])


@pytest.mark.parametrize(
    ("patch", "patched"),
    [
        ([{"op": "add", "path": "/m/a~1b~0c", "value": "new"}], {"m": {"x": 1, "a/b~c": "new"}}),
        ([{"op": "test", "path": "/m/x", "value": 1}, {"op": "remove", "path": "/m/x"}], {"m": {}}),
        ([{"op": "test", "path": "/m/x", "value": 2}, {"op": "remove", "path": "/m/x"}], None),
        ([{"op": "remove", "path": "/m/y"}], None),
    ],
)
def test_a_patch_is_applied_whole_or_not_at_all(patch, patched):
    """Members of maps are added and removed, if the tests before hold."""
    found = {"m": {"x": 1}}

    assert patched_with(found, patch) == patched
    assert found == {"m": {"x": 1}}


@pytest.mark.parametrize(
    ("old", "new", "onto", "result"),
    [
        ({"a": 1}, {"a": 2}, {"a": 9, "b": 3}, {"a": 2, "b": 3}),
        ({"a": 1, "b": 1}, {"a": 1}, {"a": 9, "b": 3}, {"a": 9}),
        ({}, {"a": {"b": 1}}, {"c": 1}, {"a": {"b": 1}, "c": 1}),
        ({"a": [{"x": 1, "y": 1}]}, {"a": [{"x": 2, "y": 1}]}, {"a": [{"x": 1, "y": 9}]}, {"a": [{"x": 2, "y": 9}]}),
        ({"a": [1]}, {"a": [1, 2]}, {"a": [9]}, {"a": [1, 2]}),
    ],
)
def test_a_recorded_change_is_made_to_another_object(old, new, onto, result):
    """Only what changed is moved; what the other object has besides stays."""
    assert moved(old, new, onto) == result


def test_what_is_replaced_in_a_recording_is_said():
    """A recording is called one only as far as it is one."""
    write = Write.load("kubectl-annotate.csa")

    assert write.note == "recorded from a real API server"
    assert write.onto(argocd_deployment()).note == "recorded from a real API server"
    assert write.asking().by_bob().note == "recorded; replaced: annotation, user"


def test_waiting_ends_when_it_is_in_vain(monkeypatch, capsys):
    """What never happens is named."""
    monkeypatch.setattr("webhook.demo.terminal._WORTH_TELLING", 0.0)
    monkeypatch.setattr("webhook.demo.terminal._PATIENCE", 0.3)

    with pytest.raises(Unexpected, match="in vain: the moon turns blue"):
        Terminal().wait("the moon turns blue", lambda: False)

    assert capsys.readouterr().out == "  waiting: the moon turns blue"


def test_output_is_wrapped_at_words_on_a_terminal(monkeypatch, capsys):
    """A long line goes on indented; nothing is cut, and short lines stay as they are."""
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "30")

    Terminal().output("Error: this line is longer than thirty columns\n  .spec.replicas: 3 -> 5\n")

    lines = capsys.readouterr().out.splitlines()
    assert lines == ["Error: this line is longer", "    than thirty columns", "  .spec.replicas: 3 -> 5"]

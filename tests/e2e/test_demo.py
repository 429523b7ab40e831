"""`driftgate demo` with a real control plane. Every step of it checks that it turns out as told."""

import signal

import pytest

from tests.demo.test_demo import left_of, start_demo

pytestmark = pytest.mark.e2e

ENVTEST = ("etcd", "kube-apiserver", "kubectl")


def test_the_story_is_told_with_what_is_at_hand(binaries, tmp_path):
    """Refused, broken open, held, filed, recorded, given back: with real commands, and nothing is left."""
    demo = start_demo(tmp_path, "--once", KUBEBUILDER_ASSETS=str(binaries.etcd.parent))
    told, _ = demo.communicate(timeout=240)

    assert demo.returncode == 0, told
    for expected in (
        'admission webhook "scale.driftgate.dev" denied the request: Deployment shop/checkout is managed by Argo CD',
        'admission webhook "people.driftgate.dev" denied the request: Deployment bank/checkout is managed by Flux',
        "deployment.apps/checkout restarted",
        "alice has no right to it",
        "Warning: break-glass until",
        "Deployment shop/checkout is held by break-glass",
        "title: 'Break-glass: Deployment shop/checkout changed by bob'",
        "records, chain intact",
        "No resources found",
        "deployment.apps/checkout configured",
    ):
        assert expected in told
    assert ("Its pods run." in told) is not bool(binaries.missing)
    assert left_of(tmp_path) == []


def test_the_binaries_of_envtest_are_enough(binaries, tmp_path):
    """Without controllers no pods run, and people have a role of the demo's own. It stays up until a signal comes."""
    assets, folder = tmp_path / "assets", tmp_path / "folder"
    for made in (assets, folder):
        made.mkdir()
    for name in ENVTEST:
        (assets / name).symlink_to(binaries.etcd.with_name(name))
    demo = start_demo(folder, KUBEBUILDER_ASSETS=str(assets))
    with demo.stdout:
        told = []
        for line in demo.stdout:
            told.append(line)
            if line == "Ctrl-C ends it.\n":
                demo.send_signal(signal.SIGINT)

    assert demo.wait(timeout=60) == 0, "".join(told)
    assert any("doing without kube-controller-manager" in line for line in told)
    assert any(line.startswith("shop        checkout   0/3") for line in told)
    assert "deployment.apps/checkout configured\n" in told
    assert any(line.startswith(f"  export KUBECONFIG={folder}/") for line in told)
    assert left_of(folder) == []

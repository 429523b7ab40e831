"""`driftgate demo` with a real control plane. Every step of it checks that it turns out as told."""

import pytest

from tests.demo.test_demo import left_of, start_demo

pytestmark = pytest.mark.e2e

ENVTEST = ("etcd", "kube-apiserver", "kubectl")


def told(tmp_path, assets):
    """Run the demo to its end and return what it said."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    demo = start_demo(folder, "--once", KUBEBUILDER_ASSETS=str(assets))
    output, _ = demo.communicate(timeout=240)
    assert demo.returncode == 0, output
    assert left_of(folder) == []
    return output


def test_the_story_is_told_with_what_is_at_hand(binaries, tmp_path):
    """Refused, broken open, held, filed, recorded, given back: with real commands, and nothing is left."""
    output = told(tmp_path, binaries.etcd.parent)

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
        assert expected in output
    assert ("Its pods run." in output) is not bool(binaries.missing)


def test_the_binaries_of_envtest_are_enough(binaries, tmp_path):
    """Without controllers no pods run, and people have a role of the demo's own; the story is the same."""
    assets = tmp_path / "assets"
    assets.mkdir()
    for name in ENVTEST:
        (assets / name).symlink_to(binaries.etcd.with_name(name))

    output = told(tmp_path, assets)

    assert "doing without kube-controller-manager" in output
    assert "checkout   0/3" in output
    assert "records, chain intact" in output

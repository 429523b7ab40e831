"""A real control plane with driftgate in front of it, one for all end-to-end tests of a run."""

import os

import pytest

from tests.e2e.terminal import place_of
from webhook.demo.control_plane import ControlPlane, find_binaries
from webhook.demo.sample import ARGOCD, ARGOCD_SSA, FLUX, PUSH
from webhook.demo.stage import Stage

TOOLS = {"argocd": ARGOCD, "argocd-ssa": ARGOCD_SSA, "flux": FLUX, "push": PUSH}


def unavailable(reason):
    """Skip what can't be tested on this machine; where that would go unnoticed (CI), fail."""
    if os.environ.get("DRIFTGATE_E2E_REQUIRED") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def binaries():
    found = find_binaries()
    if found is None:
        unavailable("no control plane on this machine: run `make control-plane`, or set KUBEBUILDER_ASSETS")
    return found


@pytest.fixture(scope="session")
def control_plane(binaries):
    """Share one control plane: a test makes a namespace of its own and takes cluster-scoped objects away again."""
    with ControlPlane(binaries) as running:
        yield running


@pytest.fixture(scope="session")
def complete_control_plane(control_plane):
    """The same, with built-in controllers and running pods."""
    missing = control_plane.binaries.missing
    if missing:
        unavailable(
            f"the control plane has no {', '.join(missing)}: unset KUBEBUILDER_ASSETS, run `make control-plane`"
        )
    return control_plane


@pytest.fixture(scope="session")
def stage(control_plane, tmp_path_factory):
    """Share one driftgate: a test has a namespace or objects of its own. Whatever happens, nothing fails inside."""
    directory = tmp_path_factory.mktemp("stage")
    with Stage(control_plane, directory) as running:
        yield running
    log = (directory / "serve.log").read_text()
    assert "Traceback" not in log
    assert "review.failed" not in log


@pytest.fixture(scope="module", params=list(TOOLS))
def place(request, stage):
    """A namespace for each tool and each file of tests."""
    file = request.module.__name__.rpartition("test_")[2].replace("_", "-")
    return place_of(stage, TOOLS[request.param], f"{file}-{request.param}")

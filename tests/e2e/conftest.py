"""A real control plane, one for all end-to-end tests of a run."""

import os

import pytest

from webhook.demo.control_plane import ControlPlane, find_binaries


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

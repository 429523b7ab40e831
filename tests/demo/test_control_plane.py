"""Finding a control plane, and what is said when it can't be found or started. Starting one is in tests/e2e."""

import base64
import json
import runpy
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID

from webhook.demo.control_plane import Binaries, ControlPlane, ControlPlaneError, binaries, find_binaries

SOURCES = Path(__file__).parents[1] / "control_plane"
ENVTEST = ["etcd", "kube-apiserver", "kubectl"]
OTHERS = ["kube-controller-manager", "kube-scheduler", "kwok", "kwok-stages.yaml"]


def fill(directory, names, script="exit 0"):
    """Make programs of these names that run a line of shell."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in names:
        (directory / name).write_text(f"#!/bin/sh\n{script}\n")
        (directory / name).chmod(0o644 if name.endswith(".yaml") else 0o755)
    return directory


def fakes(directory, script="exit 0"):
    """Make the programs of envtest in a folder and find them."""
    return find_binaries({"KUBEBUILDER_ASSETS": str(fill(directory, ENVTEST, script))})


@pytest.fixture
def cache(tmp_path):
    return binaries.cache_directory({"XDG_CACHE_HOME": str(tmp_path)})


def test_envtest_is_enough(tmp_path):
    """The three programs of envtest are a control plane; what else there could be is told."""
    found = fakes(tmp_path)

    assert found == Binaries(
        etcd=tmp_path / "etcd", kube_apiserver=tmp_path / "kube-apiserver", kubectl=tmp_path / "kubectl"
    )
    assert found.missing == tuple(OTHERS)


def test_the_assets_come_before_the_cache(tmp_path, cache):
    """Who sets KUBEBUILDER_ASSETS means it."""
    fill(cache, ENVTEST + OTHERS)
    assets = fill(tmp_path / "assets", ENVTEST + OTHERS)

    found = find_binaries({"KUBEBUILDER_ASSETS": str(assets), "XDG_CACHE_HOME": str(tmp_path)})

    assert found is not None
    assert (found.kubectl, found.missing) == (assets / "kubectl", ())


@pytest.mark.parametrize("absent", ENVTEST)
def test_assets_without_a_program_are_refused(tmp_path, absent):
    """Assets that can't work are no reason to take others silently: the missing file is named."""
    assets = fill(tmp_path, [name for name in ENVTEST if name != absent])

    with pytest.raises(ControlPlaneError, match=rf"KUBEBUILDER_ASSETS is .*, but {absent} is not there"):
        find_binaries({"KUBEBUILDER_ASSETS": str(assets)})


def test_assets_that_cannot_be_executed_are_refused(tmp_path):
    """A file that can't be executed is no program."""
    (fill(tmp_path, ENVTEST) / "etcd").chmod(0o644)

    with pytest.raises(ControlPlaneError, match="but etcd is not there"):
        find_binaries({"KUBEBUILDER_ASSETS": str(tmp_path)})


def test_the_cache_counts_when_it_is_complete(tmp_path, cache):
    """While `make control-plane` is still building, there is no control plane."""
    environment = {"XDG_CACHE_HOME": str(tmp_path)}

    assert find_binaries(environment) is None
    fill(cache, ENVTEST)
    assert find_binaries(environment) is None
    fill(cache, OTHERS)
    assert find_binaries(environment) is not None


@pytest.mark.parametrize(
    ("module", "requirement"),
    [
        ("kubernetes", f"k8s.io/kubernetes {binaries.KUBERNETES_VERSION}"),
        ("kubernetes", f"go.etcd.io/etcd/server/v3 {binaries.ETCD_VERSION}"),
        ("kwok", f"sigs.k8s.io/kwok {binaries.KWOK_VERSION}"),
    ],
)
def test_the_versions_are_those_of_the_go_modules(module, requirement):
    """What is looked for is what the go.mod files pin."""
    requirements = [line.split(" //")[0].strip() for line in (SOURCES / module / "go.mod").read_text().splitlines()]

    assert requirement in requirements


@pytest.mark.parametrize("cache_home", ["", "relative", "/var/cache/somebody"])
def test_what_is_built_is_found(monkeypatch, cache_home):
    """`make control-plane` builds into the very folder, and under the very names, that are looked for."""
    build = runpy.run_path(str(SOURCES / "build.py"))
    monkeypatch.setenv("XDG_CACHE_HOME", cache_home)

    assert build["cache_directory"]() == binaries.cache_directory()
    assert sorted(build["missing"](Path("/nowhere"))) == sorted(ENVTEST + OTHERS)


def test_a_program_that_exits_explains_itself(tmp_path):
    """The error has the end of the log and says where the rest is; the other programs are ended."""
    found = fakes(tmp_path / "assets", "exec sleep 60")
    fill(tmp_path / "assets", ["etcd"], "echo no space left; exit 3")
    control_plane = ControlPlane(found, directory=tmp_path / "state")

    with pytest.raises(ControlPlaneError) as error:
        control_plane.start()

    log = tmp_path / "state" / "logs" / "etcd.log"
    assert str(error.value) == f"etcd exited with code 3:\nno space left\n{log}"


def test_a_user_is_a_client_certificate(tmp_path):
    """A kubeconfig names user and groups the way the API server reads them, and only its owner can read it."""
    control_plane = ControlPlane(fakes(tmp_path))
    path = control_plane.kubeconfig("alice", ["developers", "on-call"])
    content, mode = json.loads(path.read_text()), stat.S_IMODE(path.stat().st_mode)
    again, other = control_plane.kubeconfig("alice", ["developers", "on-call"]), control_plane.kubeconfig("alice")
    control_plane.stop()

    encoded = content["users"][0]["user"]["client-certificate-data"]
    subject = x509.load_pem_x509_certificate(base64.b64decode(encoded)).subject

    assert [name.value for name in subject.get_attributes_for_oid(NameOID.COMMON_NAME)] == ["alice"]
    groups = [name.value for name in subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)]
    assert groups == ["developers", "on-call"]
    assert mode == 0o600
    assert again == path != other


def test_a_temporary_folder_goes_when_the_control_plane_stops(tmp_path):
    """A folder that the caller named stays, one of its own is removed."""
    own, named = ControlPlane(fakes(tmp_path)), ControlPlane(fakes(tmp_path), directory=tmp_path / "state")

    own.stop()
    named.stop()

    assert not own.directory.exists()
    assert named.directory.exists()

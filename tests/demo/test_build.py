"""Building the control plane, with a stand-in for Go: what a newcomer reads, and what an interruption leaves."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from webhook.demo.control_plane import find_binaries

BUILD = Path(__file__).parents[1] / "control_plane" / "build.py"
GO = """#!/bin/sh
case "$1" in
    env) echo {version};;
    mod) echo '{{"Dir": "{module}"}}';;
    build)
        while [ "$1" != -o ]; do shift; done
        echo "building $3"
        case "$3" in *{broken}) exit 1;; esac
        printf '#!/bin/sh\\n' > "$2"; chmod +x "$2";;
esac
"""


@pytest.fixture
def build(tmp_path):
    """Run build.py with a Go of this version (None: with nothing on PATH), which fails to build one package."""
    stage = tmp_path / "module" / "kustomize" / "stage" / "pod" / "fast"
    stage.mkdir(parents=True)
    (stage / "pod-ready.yaml").write_text("kind: Stage\n")
    (stage / "kustomization.yaml").write_text("kind: Kustomization\n")
    go = tmp_path / "bin" / "go"
    go.parent.mkdir()

    def run(version="go1.99.1", broken="nothing"):
        path = str(go.parent)
        if version is not None:
            go.write_text(GO.format(version=version, broken=broken, module=tmp_path / "module"))
            go.chmod(0o755)
            path += f":{os.defpath}"
        environment = {"PATH": path, "XDG_CACHE_HOME": str(tmp_path), "HOME": str(tmp_path)}
        return subprocess.run([sys.executable, BUILD], env=environment, capture_output=True, text=True, check=False)

    return run


def built(tmp_path):
    return find_binaries({"XDG_CACHE_HOME": str(tmp_path)})


def test_everything_is_built_and_can_be_found(build, tmp_path):
    """One run makes all programs and kwok's stages, and says what to do next."""
    done = build()

    assert done.returncode == 0, done.stderr
    assert "[6/6] kwok" in done.stdout
    assert done.stdout.endswith("Next: make demo, or make e2e\n")
    assert built(tmp_path).kwok_stages.read_text() == "kind: Stage\n"


def test_a_second_run_builds_nothing(build):
    """Once everything is there, not even Go is needed."""
    build()

    again = build(broken="v3")

    assert again.returncode == 0
    assert "Building" not in again.stdout


def test_a_failed_build_shows_why_and_the_next_run_goes_on(build, tmp_path):
    """The end of the compiler's output is printed, and what was built before is kept."""
    failed = build(broken="kubectl")

    assert failed.returncode == 1
    assert "[2/6] kubectl failed:\nbuilding k8s.io/kubernetes/cmd/kubectl\n" in failed.stderr
    assert built(tmp_path) is None
    assert "Building kubectl, kube-apiserver" in build().stdout
    assert built(tmp_path) is not None


@pytest.mark.parametrize(
    ("version", "problem"),
    [(None, "there is no `go` on PATH"), ("go1.22.3", "This Go is too old for the control plane: go1.22.3")],
)
def test_a_newcomer_without_go_is_told_what_to_do(build, version, problem):
    """Without Go, or with an old one, both ways out are named."""
    done = build(version)

    assert done.returncode == 1
    assert problem in done.stderr
    assert "Install Go 1.26.0 or newer" in done.stderr
    assert "set KUBEBUILDER_ASSETS to a folder" in done.stderr

"""Where the programs of a control plane are on this machine: the envtest convention first, then the user's cache."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

KUBERNETES_VERSION = "v1.37.2"  # as in tests/control_plane/*/go.mod
ETCD_VERSION = "v3.7.0"
KWOK_VERSION = "v0.8.0"

REQUIRED = ("etcd", "kube_apiserver", "kubectl")


class ControlPlaneError(Exception):
    """The control plane can't be found, started or used as asked; the text says why and where to look."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Binaries:
    """Where the programs are. What is None is done without.

    Without kube-controller-manager the ClusterRoles `view`, `edit` and `admin` grant nothing: it fills them.
    """

    etcd: Path
    kube_apiserver: Path
    kubectl: Path
    kube_controller_manager: Path | None = None
    kube_scheduler: Path | None = None
    kwok: Path | None = None
    kwok_stages: Path | None = None  # what kwok does with nodes and pods; it can't run without

    @property
    def missing(self) -> tuple[str, ...]:
        """The file names of what is done without."""
        return tuple(_file_name(field.name) for field in fields(self) if getattr(self, field.name) is None)


def find_binaries(environment: Mapping[str, str] = os.environ) -> Binaries | None:
    """Return the binaries of `$KUBEBUILDER_ASSETS`, else those that `make control-plane` built, else None.

    envtest has etcd, kube-apiserver and kubectl only: the others may be missing there. The cache folder counts only
    when it is complete.

    Raises ControlPlaneError if `$KUBEBUILDER_ASSETS` is set but one of those three is not there.
    """
    if assets := environment.get("KUBEBUILDER_ASSETS"):
        found = _usable_in(Path(assets))
        absent = [_file_name(name) for name in REQUIRED if name not in found]
        if absent:
            message = (
                f"KUBEBUILDER_ASSETS is {assets}, but {', '.join(absent)} is not there (or can't be executed). "
                "Point it at a folder with etcd, kube-apiserver and kubectl, or unset it and run `make control-plane`."
            )
            raise ControlPlaneError(message)
        return Binaries(**found)
    found = _usable_in(cache_directory(environment))
    return Binaries(**found) if len(found) == len(fields(Binaries)) else None


def cache_directory(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the folder in the user's cache where `make control-plane` puts exactly these versions."""
    cache = Path(environment.get("XDG_CACHE_HOME", ""))
    if not cache.is_absolute():  # unset, or not to be heeded, says the XDG base directory specification
        cache = Path.home() / ".cache"
    key = f"kubernetes-{KUBERNETES_VERSION}_etcd-{ETCD_VERSION}_kwok-{KWOK_VERSION}"
    return cache / "driftgate" / "control-plane" / key


def _usable_in(directory: Path) -> dict[str, Path]:
    paths = {field.name: directory / _file_name(field.name) for field in fields(Binaries)}
    return {name: path for name, path in paths.items() if _usable(path)}


def _usable(path: Path) -> bool:
    return path.is_file() and (path.suffix == ".yaml" or os.access(path, os.X_OK))


def _file_name(field: str) -> str:
    return "kwok-stages.yaml" if field == "kwok_stages" else field.replace("_", "-")

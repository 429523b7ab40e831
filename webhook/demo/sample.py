"""The sample application, as Argo CD, Flux and a pipeline apply it: plain manifests, marked as each tool marks them."""

import json
from dataclasses import dataclass
from typing import Any

IMAGE = "registry.example.com/shop/checkout:1.4.0"

Manifest = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """How one tool applies: under which account, with which kubectl flags, with which mark."""

    tool: str
    namespace: str
    account: tuple[str, str]
    """Namespace and name of the service account."""
    flags: tuple[str, ...]


ARGOCD = Applied(
    tool="argocd",
    namespace="shop",
    account=("argocd", "argocd-application-controller"),
    flags=("--field-manager=argocd-controller",),
)
ARGOCD_SSA = Applied(
    tool="argocd",
    namespace="shop-ssa",
    account=("argocd", "argocd-application-controller"),
    flags=("--server-side", "--field-manager=argocd-controller", "--force-conflicts"),
)
FLUX = Applied(
    tool="flux",
    namespace="bank",
    account=("flux-system", "kustomize-controller"),
    flags=("--server-side", "--field-manager=kustomize-controller", "--force-conflicts"),
)
PUSH = Applied(tool="push", namespace="blog", account=("ci", "deployer"), flags=())
ALL = (ARGOCD, ARGOCD_SSA, FLUX, PUSH)


def deployment(name: str = "checkout", *, image: str = IMAGE, replicas: int | None = 3) -> Manifest:
    """Return a Deployment as it stands in Git; `replicas` None leaves them to an autoscaler."""
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            **({} if replicas is None else {"replicas": replicas}),
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {
                    "terminationGracePeriodSeconds": 0,
                    "containers": [
                        {
                            "name": "app",
                            "image": image,
                            "env": [{"name": "LOG_LEVEL", "value": "info"}],
                            "ports": [{"name": "http", "containerPort": 8080}],
                            "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}},
                        }
                    ],
                },
            },
        },
    }


def config_map(name: str = "settings") -> Manifest:
    """Return a ConfigMap as it stands in Git."""
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"theme": "dark"}}


def secret(name: str = "credentials", password: str = "correct-horse-battery") -> Manifest:  # noqa: S107 -- sample data
    """Return a Secret as it stands in Git."""
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": {"password": password}}


def marked(manifest: Manifest, applied: Applied, application: str = "checkout") -> Manifest:
    """Return the manifest with the mark that the tool puts on it when it applies it."""
    copy: Manifest = json.loads(json.dumps(manifest))
    meta = copy["metadata"]
    meta["namespace"] = applied.namespace
    if applied.tool == "argocd":
        group = copy["apiVersion"].rpartition("/")[0]
        tracking_id = f"{application}:{group}/{copy['kind']}:{applied.namespace}/{meta['name']}"
        meta.setdefault("annotations", {})["argocd.argoproj.io/tracking-id"] = tracking_id
    elif applied.tool == "flux":
        labels = meta.setdefault("labels", {})
        labels["kustomize.toolkit.fluxcd.io/name"] = application
        labels["kustomize.toolkit.fluxcd.io/namespace"] = "flux-system"
    else:
        source = f"https://git.example.org/{application}/deploy//apps/{meta['name']}.yaml"
        meta.setdefault("annotations", {})["driftgate.dev/source"] = source
    return copy

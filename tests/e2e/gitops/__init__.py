"""The real GitOps tools on loopback, against a control plane: Flux's kustomize-controller and Argo CD.

    repository = Repository(folder / "deploy")
    with Flux(control_plane, folder / "flux", repository) as flux, ArgoCD(control_plane, folder / "argocd") as argocd:
        repository.commit({"shop/checkout.yaml": manifest})
        flux.publish()
        flux.kustomization("shop", "shop", target_namespace="shop")
        flux.reconcile("shop")
        argocd.application("bank", repository, "bank", namespace="bank")
        argocd.synced("bank")

Both write under their own service accounts, with tokens, as in a cluster. `make gitops-tools` builds them.
"""

from tests.e2e.gitops.argocd import ArgoCD
from tests.e2e.gitops.flux import Flux
from tests.e2e.gitops.repository import Repository
from tests.e2e.gitops.tool import ToolError, why_unavailable

__all__ = ["ArgoCD", "Flux", "Repository", "ToolError", "why_unavailable"]

"""Which GitOps tool manages an object, for which application, and who its reconcilers are.

A tool is a row of data and one small function that reads its mark. Adding a tool touches this file and its recordings.
Easy to get wrong: marks leak. ReplicaSets copy a Deployment's annotations, EndpointSlices a Service's labels; so an
object that a controller owns is generated and never managed, and a mark that names another object does not count.
A field manager's name is a claim, never an identity: reconcilers are known by `userInfo` alone.

Source: Argo CD, "Resource Tracking"; Flux, "kustomize-controller: Garbage collection".
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from webhook.admission import GroupVersionKind, Object, annotations, labels, metadata
from webhook.fields import Path

SOURCE = "driftgate.dev/source"
"""The annotation with which a pipeline marks what it applies: `<repository>//<path>`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Somebody who writes: a user name, or `group:NAME`.

    A service account's own token carries a uid; `kubectl --as=` carries none. So a service account counts only with
    one, unless its tool itself impersonates it.
    """

    name: str
    impersonated: bool = False

    def is_user(self, username: str, uid: str, groups: Sequence[str]) -> bool:
        """Tell whether this is the user that a review names."""
        if self.name.startswith("group:"):
            return self.name[6:] in groups
        if self.name != username:
            return False
        return self.impersonated or bool(uid) or not username.startswith("system:serviceaccount:")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """One GitOps tool. `find` returns the application that an object's mark names, or None."""

    key: str
    title: str
    """What a message calls the tool and its unit: `Argo CD application`."""
    marks: tuple[Path, ...]
    find: Callable[[Object, GroupVersionKind], str | None]
    field_managers: frozenset[str]
    reconcilers: tuple[Identity, ...]
    names_object: bool = False
    """The mark names the object that carries it, so that a copy can be told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ManagedBy:
    """A valid mark: the tool, and the application it names."""

    tool: Tool
    application: str

    def __str__(self) -> str:
        return f'{self.tool.title} "{self.application}"'


def managed_by(obj: Object | None, kind: GroupVersionKind, tools: Sequence[Tool]) -> tuple[ManagedBy, ...]:
    """Return every valid mark on `obj`; none if it is no object, generated, or nobody's."""
    if obj is None or not metadata(obj):
        return ()
    found = [(tool, tool.find(obj, kind)) for tool in tools]
    marks = tuple(ManagedBy(tool=tool, application=application) for tool, application in found if application)
    return () if marks and is_generated(obj) else marks


def is_generated(obj: Object) -> bool:
    """Tell whether a controller owns `obj`: a ReplicaSet, a Pod, a Job of a CronJob."""
    owners = metadata(obj).get("ownerReferences")
    return isinstance(owners, list) and any(isinstance(o, dict) and o.get("controller") is True for o in owners)


def annotation_path(key: str) -> Path:
    """Return the path of an annotation."""
    return ("f:metadata", "f:annotations", "f:" + key)


def label_path(key: str) -> Path:
    """Return the path of a label."""
    return ("f:metadata", "f:labels", "f:" + key)


_TRACKING_ID = "argocd.argoproj.io/tracking-id"
_FLUX = "kustomize.toolkit.fluxcd.io/"


def _argocd_application(obj: Object, kind: GroupVersionKind) -> str | None:
    """Read `<app>:<group>/<Kind>:<namespace>/<name>`, which has to name this very object.

    On a cluster-scoped object the namespace is the application's destination, and is not compared.
    """
    mark = annotations(obj).get(_TRACKING_ID)
    if not isinstance(mark, str):
        return None
    application, _, rest = mark.partition(":")
    group_kind, _, place = rest.partition(":")
    namespace, _, name = place.partition("/")
    meta = metadata(obj)
    own_namespace = meta.get("namespace") or ""
    fits = group_kind == f"{kind.group}/{kind.kind}" and name == _name(meta) and own_namespace in {"", namespace}
    return application if application and fits else None


def _name(meta: Object) -> str:
    return str(meta.get("name") or "")


def _flux_kustomization(obj: Object, _kind: GroupVersionKind) -> str | None:
    name, namespace = labels(obj).get(_FLUX + "name"), labels(obj).get(_FLUX + "namespace")
    return f"{namespace}/{name}" if name and namespace else None


def _push_source(obj: Object, _kind: GroupVersionKind) -> str | None:
    source = annotations(obj).get(SOURCE)
    return source if isinstance(source, str) and source.strip() else None


ARGOCD = Tool(
    key="argocd",
    title="Argo CD application",
    marks=(annotation_path(_TRACKING_ID),),
    find=_argocd_application,
    field_managers=frozenset({"argocd-controller"}),
    reconcilers=(
        Identity(name="system:serviceaccount:argocd:argocd-application-controller"),
        Identity(name="system:serviceaccount:openshift-gitops:openshift-gitops-argocd-application-controller"),
        Identity(name="system:serviceaccount:kube-system:argocd-manager"),
    ),
    names_object=True,
)
FLUX = Tool(
    key="flux",
    title="Flux Kustomization",
    marks=(label_path(_FLUX + "name"), label_path(_FLUX + "namespace")),
    find=_flux_kustomization,
    field_managers=frozenset({"kustomize-controller"}),
    reconcilers=(Identity(name="system:serviceaccount:flux-system:kustomize-controller"),),
)
KUBECTL = frozenset({"kubectl-client-side-apply", "kubectl"})
"""The field managers of `kubectl apply`, a pipeline's and everybody's."""

PUSH = Tool(
    key="push",
    title="the pipeline of",
    marks=(annotation_path(SOURCE),),
    find=_push_source,
    field_managers=KUBECTL,
    reconcilers=(),
)
TOOLS = (ARGOCD, FLUX, PUSH)


def with_settings(
    tool: Tool, *, reconcilers: Sequence[str], impersonated: Sequence[str], field_managers: Sequence[str]
) -> Tool:
    """Return the tool with what a configuration adds to it."""
    return replace(
        tool,
        reconcilers=(
            *tool.reconcilers,
            *(Identity(name=name) for name in reconcilers),
            *(Identity(name=name, impersonated=True) for name in impersonated),
        ),
        field_managers=tool.field_managers | frozenset(field_managers),
    )

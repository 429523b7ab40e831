"""The webhook configurations, and the matchConditions that keep most writes from ever reaching us.

Generated from the same policy as the rules, so that what CEL keeps away is what would have been allowed without being
looked at: unmanaged and generated objects, the cluster's own writes, reconcilers where nothing is held, the exempt.
Easy to get wrong: an empty field of `request` is not there at all (`has`), an error in a condition follows the
failurePolicy, and CEL can't see the marks of what a Scale scales.

Format: Kubernetes, "Dynamic Admission Control", matchConditions (1.30 and newer).
"""

import base64
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from webhook.break_glass import ACTIVE, ASK, ASK_FOR, LABEL, PREFIX, STAMPS
from webhook.fields import Path
from webhook.managed import Identity, Tool
from webhook.policy import (
    BUILT_IN_CONTROLLERS,
    IGNORED_RESOURCES,
    IGNORED_SUBRESOURCES,
    NODES,
    SYSTEM_USERS,
    Policy,
)

NAME = "driftgate"
_USER = "request.userInfo.username"
_HAS_UID = '(has(request.userInfo.uid) && request.userInfo.uid != "")'
_SUBRESOURCE = '(has(request.subResource) ? request.subResource : "")'

Manifest = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where the API server finds us: a Service, or a URL for a webhook outside the cluster."""

    ca_bundle: bytes
    """PEM."""
    namespace: str = "driftgate"
    service: str = "driftgate"
    port: int = 443
    url: str = ""
    """For example `https://192.0.2.7:8443`; then the Service is not used."""


def registration(policy: Policy, endpoint: Endpoint) -> list[Manifest]:
    """Return the MutatingWebhookConfiguration and the ValidatingWebhookConfiguration."""
    return [
        _configuration("MutatingWebhookConfiguration", [_asks(endpoint)]),
        _configuration(
            "ValidatingWebhookConfiguration",
            [
                _people(policy, endpoint),
                _held(policy, endpoint),
                _controllers(policy, endpoint),
                _scale(policy, endpoint),
            ],
        ),
    ]


def _configuration(kind: str, webhooks: list[Manifest]) -> Manifest:
    labels = {"app.kubernetes.io/name": NAME}
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": kind,
        "metadata": {"name": NAME, "labels": labels},
        "webhooks": webhooks,
    }


def _entry(name: str, path: str, endpoint: Endpoint, *, failure_policy: str) -> Manifest:
    client: Manifest = {"caBundle": base64.b64encode(endpoint.ca_bundle).decode()}
    if endpoint.url:
        client["url"] = f"{endpoint.url.rstrip('/')}/{path}"
    else:
        client["service"] = {
            "namespace": endpoint.namespace,
            "name": endpoint.service,
            "path": f"/{path}",
            "port": endpoint.port,
        }
    return {
        "name": f"{name}.{PREFIX.rstrip('/')}",
        "admissionReviewVersions": ["v1"],
        "clientConfig": client,
        "failurePolicy": failure_policy,
        "matchPolicy": "Equivalent",
        "sideEffects": "NoneOnDryRun",
        "timeoutSeconds": 5,
        "namespaceSelector": {
            "matchExpressions": [
                {"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": [endpoint.namespace]}
            ]
        },
    }


def _rules(operations: Sequence[str], resources: Sequence[str]) -> list[Manifest]:
    return [
        {
            "apiGroups": ["*"],
            "apiVersions": ["*"],
            "operations": list(operations),
            "resources": list(resources),
            "scope": "*",
        }
    ]


def _conditions(**expressions: str) -> list[Manifest]:
    return [{"name": name.replace("_", "-"), "expression": text} for name, text in expressions.items()]


_ALL = ("CREATE", "UPDATE", "DELETE")


def _asks(endpoint: Endpoint) -> Manifest:
    keys = _list(sorted({ASK, ASK_FOR, *STAMPS}))
    annotated = f"has(o.metadata.annotations) && {keys}.exists(k, k in o.metadata.annotations)"
    labelled = f"has(o.metadata.labels) && {_text(LABEL)} in o.metadata.labels"
    return {
        **_entry("asks", "mutate", endpoint, failure_policy="Ignore"),
        "reinvocationPolicy": "IfNeeded",
        "rules": _rules(("CREATE", "UPDATE"), ("*", "*/status")),
        "matchConditions": _conditions(asks_or_stamped=_either(f"({annotated}) || ({labelled})")),
    }


def _people(policy: Policy, endpoint: Endpoint) -> Manifest:
    return {
        **_entry("people", "validate", endpoint, failure_policy="Fail"),
        "rules": _rules(_ALL, ("*/*",)),
        "matchConditions": _conditions(
            is_configuration=_is_configuration(),
            is_managed=f"{_is_managed(policy)} || {_namespace_keys()}",
            by_a_person=f"!({_by_program(policy)}) && !({_by_the_cluster()})",
            not_by_its_reconciler=f"!({_by_reconciler(policy)})",
            not_exempt=_not_exempt(policy),
        ),
    }


def _held(policy: Policy, endpoint: Endpoint) -> Manifest:
    return {
        **_entry("held", "validate", endpoint, failure_policy="Fail"),
        "rules": _rules(_ALL, ("*/*",)),
        "objectSelector": {"matchLabels": {LABEL: ACTIVE}},
        "matchConditions": _conditions(
            is_configuration=_is_configuration(),
            by_its_reconciler=_by_reconciler(policy),
            not_exempt=_not_exempt(policy),
        ),
    }


def _controllers(policy: Policy, endpoint: Endpoint) -> Manifest:
    return {
        **_entry("controllers", "validate", endpoint, failure_policy="Ignore"),
        "rules": _rules(_ALL, ("*/*",)),
        "matchConditions": _conditions(
            is_configuration=_is_configuration(),
            is_managed=f"{_is_managed(policy)} || {_namespace_keys()}",
            by_a_controller=f"({_by_program(policy)}) && !({_by_the_cluster()})",
            not_by_its_reconciler=f"!({_by_reconciler(policy)})",
            not_exempt=_not_exempt(policy),
        ),
    }


def _scale(policy: Policy, endpoint: Endpoint) -> Manifest:
    return {
        **_entry("scale", "validate", endpoint, failure_policy="Ignore"),
        "rules": _rules(("UPDATE",), ("*/scale",)),
        "matchConditions": _conditions(not_by_the_cluster=f"!({_by_the_cluster()})", not_exempt=_not_exempt(policy)),
    }


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)


def _list(values: Iterable[str]) -> str:
    return f"[{', '.join(_text(value) for value in values)}]"


def _either(condition: str) -> str:
    """Say that the old or the new object, `o`, fulfils a condition."""
    return f"[object, oldObject].exists(o, o != null && has(o.metadata) && ({condition}))"


def _is_configuration() -> str:
    """Say what is never configuration; scales have an entry of their own."""
    ignored = f"{_SUBRESOURCE} in {_list([*sorted(IGNORED_SUBRESOURCES), 'scale'])}"
    resources = " || ".join(
        f"request.resource.group == {_text(group)}"
        + (f" && request.resource.resource == {_text(resource)}" if resource != "*" else "")
        for group, resource in IGNORED_RESOURCES
    )
    return f"!({ignored}) && !({resources})"


def _has_key(obj: str, path: Path) -> str:
    """Say that an object has a label or annotation."""
    section, key = path[1].removeprefix("f:"), path[2].removeprefix("f:")
    return f"(has({obj}.metadata.{section}) && {_text(key)} in {obj}.metadata.{section})"


def _has_mark(obj: str, tool: Tool) -> str:
    return "(" + " && ".join(_has_key(obj, mark) for mark in tool.marks) + ")"


def _is_managed(policy: Policy) -> str:
    generated = (
        "has(o.metadata.ownerReferences) && o.metadata.ownerReferences.exists(r, has(r.controller) && r.controller)"
    )
    marked = " || ".join(_has_mark("o", tool) for tool in policy.tools) or "false"
    return _either(f"({marked}) && !({generated})")


def _namespace_keys() -> str:
    """Say that this is a Namespace with keys of ours: asking for break-glass there is answered, not ignored."""
    keys = f"{{}}.exists(k, k.startsWith({_text(PREFIX)}))"
    sections = " || ".join(
        f"(has(o.metadata.{name}) && {keys.format(f'o.metadata.{name}')})" for name in ("annotations", "labels")
    )
    return f'(request.kind.group == "" && request.kind.kind == "Namespace" && {_either(sections)})'


def _by(identity: Identity) -> str:
    if identity.name.startswith("group:"):
        return f"(has(request.userInfo.groups) && {_text(identity.name[6:])} in request.userInfo.groups)"
    named = f"{_USER} == {_text(identity.name)}"
    own_token = identity.name.startswith("system:serviceaccount:") and not identity.impersonated
    return f"({named} && {_HAS_UID})" if own_token else f"({named})"


def _by_reconciler(policy: Policy) -> str:
    """Say that the tool which manages the object writes: by the old object's marks, or the new one's if it had none."""
    any_mark = " || ".join(_has_mark("oldObject", tool) for tool in policy.tools) or "false"
    parts = [
        f"(({' || '.join(_by(i) for i in tool.reconcilers)}) && "
        f"(oldObject != null && ({any_mark}) ? {_has_mark('oldObject', tool)} : "
        f"object != null && {_has_mark('object', tool)}))"
        for tool in policy.tools
        if tool.reconcilers
    ]
    return " || ".join(parts) or "false"


def _by_program(policy: Policy) -> str:
    """Say that a service account writes with its own token, and is no web interface of people."""
    people = f" && !({_USER} in {_list(sorted(policy.people))})" if policy.people else ""
    return f'{_USER}.startsWith("system:serviceaccount:") && {_HAS_UID}{people}'


def _by_the_cluster() -> str:
    is_node = f'{_USER}.startsWith("system:node:") && has(request.userInfo.groups)'
    nodes = f"({is_node} && {_text(NODES)} in request.userInfo.groups)"
    built_in = f"({_USER} in {_list(sorted(BUILT_IN_CONTROLLERS))} && {_HAS_UID})"
    return f"{_USER} in {_list(sorted(SYSTEM_USERS))} || {nodes} || {built_in}"


def _not_exempt(policy: Policy) -> str:
    exempt = " || ".join(_by(identity) for identity in policy.exempt)
    return f"!({exempt})" if exempt else "true"

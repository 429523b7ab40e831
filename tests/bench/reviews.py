"""AdmissionReviews of any size, made from recorded ones.

A size is that of the whole review as it is sent, both objects included, in KB of 1,024 bytes: the recorded update of a
small Deployment is the 10 KB one. Larger ones grow as large manifests do, by containers with environment variables and
by annotations, and everywhere at once: in the spec, in the last-applied annotation, and in the managedFields of the tool.
Smaller ones lose what a write can do without.
"""

import json
from copy import deepcopy
from enum import StrEnum
from typing import Any

from tests import recordings
from webhook.admission import Object
from webhook.declared import LAST_APPLIED
from webhook.managed import ARGOCD

KB = 1024
SIZES = (1, 10, 42, 300)
LARGEST = 1024
TOKEN = "@@@@@@@@@@"
"""Stands for a number in a name: with a name of its own every denial is new, and recorded."""

TOLERANCE = 0.1
_VARIABLES = 12  # of one container
_MARK = "argocd.argoproj.io/tracking-id"
_PADDING = "example.com/padding"


class Write(StrEnum):
    """What is written, and with it what becomes of it."""

    DENIED = "denied"
    """Replicas that Git declares: Drift."""
    DEEP = "denied, image"
    """An image that Git declares, deep inside, by client-side apply: Drift."""
    ALLOWED = "allowed"
    """A rollout restart, of the same managed object: NoDrift."""
    UNMANAGED = "not managed"
    """The same replicas of an object that nobody manages: NotManaged."""


_RECORDED = {
    Write.DENIED: "kubectl-edit.csa.validate",
    Write.DEEP: "kubectl-edit-image.csa.validate",
    Write.ALLOWED: "kubectl-rollout-restart.csa.validate",
    Write.UNMANAGED: "kubectl-edit.csa.validate",
}


def body(write: Write, size: int, name: str = "web") -> bytes:
    """Return a review of about `size` KB, of a Deployment called `name`."""
    review = json.loads(recordings.body(_RECORDED[write]))
    request = review["request"]
    for obj in _objects(request):
        _rename(obj, name)
        if write is Write.UNMANAGED:
            _unmark(obj)
    request["name"] = name
    if len(_encoded(review)) > size * KB * (1 + TOLERANCE):
        _shrink(review, size * KB)
    else:
        _grow(review, size * KB)
    return _encoded(review)


def _objects(request: Object) -> tuple[Object, Object]:
    return request["oldObject"], request["object"]


def _encoded(review: Object) -> bytes:
    return json.dumps(review, separators=(",", ":")).encode()


def _rename(obj: Object, name: str) -> None:
    meta = obj["metadata"]
    mark = f"guestbook:apps/Deployment:guestbook/{name}"
    meta["name"] = name
    meta["annotations"][_MARK] = mark
    manifest = json.loads(meta["annotations"][LAST_APPLIED])
    manifest["metadata"]["name"] = name
    manifest["metadata"]["annotations"][_MARK] = mark
    meta["annotations"][LAST_APPLIED] = _encoded(manifest).decode() + "\n"


def _unmark(obj: Object) -> None:
    meta = obj["metadata"]
    manifest = json.loads(meta["annotations"][LAST_APPLIED])
    del meta["annotations"][_MARK], manifest["metadata"]["annotations"][_MARK]
    meta["annotations"][LAST_APPLIED] = _encoded(manifest).decode() + "\n"
    for entry in meta["managedFields"]:
        entry["fieldsV1"].get("f:metadata", {}).get("f:annotations", {}).pop(f"f:{_MARK}", None)


def _grow(review: Object, size: int) -> None:
    """Add as many environment variables as it takes."""
    empty = len(_encoded(review))
    request = review["request"]
    original = deepcopy(_objects(request))

    def grown(variables: int) -> int:
        request["oldObject"], request["object"] = deepcopy(original)
        for obj in _objects(request):
            _add_variables(obj, variables)
        return len(_encoded(review))

    enough = 1
    if size - empty < (grown(enough) - empty) / 2:
        grown(0)
        return
    least = 0
    while grown(enough) < size:
        least, enough = enough, enough * 2
    while enough - least > 1:
        middle = (least + enough) // 2
        least, enough = (middle, enough) if grown(middle) < size else (least, middle)
    grown(enough)


def _add_variables(obj: Object, variables: int) -> None:
    meta = obj["metadata"]
    manifest = json.loads(meta["annotations"][LAST_APPLIED])
    fields = next(e["fieldsV1"] for e in meta["managedFields"] if e["manager"] in ARGOCD.field_managers)
    owned = fields["f:spec"]["f:template"]["f:spec"]["f:containers"]
    live, stated = (o["spec"]["template"]["spec"]["containers"] for o in (obj, manifest))
    patterns = deepcopy((live[0], stated[0], owned['k:{"name":"web"}']))
    for number in range(variables):
        place, index = divmod(number, _VARIABLES)
        if index == 0 and place > 0:
            _add_container(f"helper-{place:04}", live, stated, owned, patterns)
            notes = {f"example.com/notes-{place:04}": f"what helper {place} is for, and whom to ask about it"}
            meta["annotations"] |= notes
            manifest["metadata"]["annotations"] |= notes
            fields["f:metadata"]["f:annotations"] |= {f"f:{key}": {} for key in notes}
        variable = {"name": f"SETTING_{number:05}", "value": f"https://backend-{number:05}.guestbook.svc:8443/api/v2"}
        live[-1]["env"].append(variable)
        stated[-1]["env"].append(variable)
        container = owned[_key(live[-1]["name"])]
        container["f:env"][_key(variable["name"])] = {".": {}, "f:name": {}, "f:value": {}}
    meta["annotations"][LAST_APPLIED] = _encoded(manifest).decode() + "\n"


def _add_container(name: str, live: list[Any], stated: list[Any], owned: Object, patterns: tuple[Any, Any, Any]) -> None:
    container, manifest, fields = deepcopy(patterns)
    live.append(container | {"name": name})
    stated.append(manifest | {"name": name})
    owned[_key(name)] = fields


def _key(name: str) -> str:
    return "k:" + _encoded({"name": name}).decode()


def _shrink(review: Object, size: int) -> None:
    """Take away what a write can do without, most telling part last, and fill up what is then missing."""
    request = review["request"]
    objects = _objects(request)
    losses = [(request, name) for name in ("requestKind", "requestResource", "options")]
    losses += [(request["userInfo"], "extra")]
    losses += [(obj, "status") for obj in objects]
    losses += [(obj["metadata"], name) for name in ("managedFields", "uid", "labels") for obj in objects]
    losses += [(obj["metadata"], name) for name in ("resourceVersion", "creationTimestamp") for obj in objects]
    losses += [(obj["metadata"]["annotations"], "deployment.kubernetes.io/revision") for obj in objects]
    losses += [(obj["spec"], name) for name in ("strategy", "selector") for obj in objects]
    losses += [(obj["spec"]["template"]["spec"]["containers"][0], name) for name in _EXTRAS for obj in objects]
    losses += [(obj["metadata"]["annotations"], LAST_APPLIED) for obj in objects]
    losses += [(obj["spec"]["template"]["spec"], name) for name in _POD_EXTRAS for obj in objects]
    for place, name in losses:
        if len(_encoded(review)) <= size:
            break
        place.pop(name, None)
    missing = (size - len(_encoded(review))) // 2
    if missing > 0:
        padding = "x" * max(missing - len(_PADDING) - 6, 0)
        for obj in objects:
            obj["metadata"]["annotations"][_PADDING] = padding


_EXTRAS = ("readinessProbe", "resources", "ports", "env", "terminationMessagePath", "terminationMessagePolicy")
_POD_EXTRAS = ("terminationGracePeriodSeconds", "dnsPolicy", "securityContext", "schedulerName", "restartPolicy")

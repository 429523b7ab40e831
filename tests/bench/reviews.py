"""AdmissionReviews of any size, made from recorded ones.

A size is that of the whole review as it is sent, both objects included, in KB of 1,024 bytes: the recorded update of a
small Deployment is the 10 KB one. Larger ones grow as large manifests do, by containers with environment variables and
by annotations, and everywhere at once: in the spec, in the last-applied annotation, and in the tool's managedFields.
Smaller ones lose what a write can do without.
"""

import json
from bisect import bisect_left
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
        _strip(review, size * KB)
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
    manifest = _manifest(obj)
    manifest["metadata"]["name"] = name
    manifest["metadata"]["annotations"][_MARK] = mark
    meta["annotations"][LAST_APPLIED] = _encoded(manifest).decode() + "\n"


def _unmark(obj: Object) -> None:
    meta = obj["metadata"]
    manifest = _manifest(obj)
    del meta["annotations"][_MARK], manifest["metadata"]["annotations"][_MARK]
    meta["annotations"][LAST_APPLIED] = _encoded(manifest).decode() + "\n"
    for entry in meta["managedFields"]:
        entry["fieldsV1"].get("f:metadata", {}).get("f:annotations", {}).pop(f"f:{_MARK}", None)


def _grow(review: Object, size: int) -> None:
    """Add as many environment variables as it takes; each is good for some 450 bytes of a review."""
    request = review["request"]
    original = deepcopy(_objects(request))
    pattern = _containers(original[0], _manifest(original[0]))

    def grown(variables: int) -> int:
        request["oldObject"], request["object"] = deepcopy(original)
        for obj in _objects(request):
            _add_variables(obj, variables, pattern)
        return len(_encoded(review))

    grown(bisect_left(range(size // 300), size, key=grown))


Containers = tuple[list[Any], list[Any], Object]
"""The containers of one object in three places: as they are stored, as they were applied, as fields of the tool."""


def _manifest(obj: Object) -> Object:
    manifest: Object = json.loads(obj["metadata"]["annotations"][LAST_APPLIED])
    return manifest


def _fields(obj: Object) -> Object:
    entries = obj["metadata"]["managedFields"]
    fields: Object = next(e["fieldsV1"] for e in entries if e["manager"] in ARGOCD.field_managers)
    return fields


def _containers(obj: Object, manifest: Object) -> Containers:
    stored, applied = (o["spec"]["template"]["spec"]["containers"] for o in (obj, manifest))
    return stored, applied, _fields(obj)["f:spec"]["f:template"]["f:spec"]["f:containers"]


def _add_variables(obj: Object, variables: int, pattern: Containers) -> None:
    manifest = _manifest(obj)
    containers = _containers(obj, manifest)
    stored, applied, owned = containers
    for number in range(variables):
        place, index = divmod(number, _VARIABLES)
        if index == 0 and place > 0:
            _add_container(f"helper-{place:04}", containers, pattern)
            _annotate(obj, manifest, f"example.com/notes-{place:04}", f"what helper {place} is for, and whom to ask")
        variable = {"name": f"SETTING_{number:05}", "value": f"https://backend-{number:05}.guestbook.svc:8443/api/v2"}
        stored[-1]["env"].append(variable)
        applied[-1]["env"].append(variable)
        owned[_key(stored[-1]["name"])]["f:env"][_key(variable["name"])] = {".": {}, "f:name": {}, "f:value": {}}
    obj["metadata"]["annotations"][LAST_APPLIED] = _encoded(manifest).decode() + "\n"


def _add_container(name: str, containers: Containers, pattern: Containers) -> None:
    stored, applied, owned = deepcopy(pattern)
    containers[0].append(stored[0] | {"name": name})
    containers[1].append(applied[0] | {"name": name})
    containers[2][_key(name)] = owned[_key("web")]


def _annotate(obj: Object, manifest: Object, key: str, value: str) -> None:
    for annotated in (obj, manifest):
        annotated["metadata"].setdefault("annotations", {})[key] = value
    _fields(obj)["f:metadata"]["f:annotations"][f"f:{key}"] = {}


def _key(name: str) -> str:
    return "k:" + _encoded({"name": name}).decode()


def _strip(review: Object, size: int) -> None:
    """Keep what makes it the write that it is, and fill up with an annotation what is then missing."""
    request = review["request"]
    for name in ("requestKind", "requestResource", "options", "dryRun"):
        del request[name]
    del request["userInfo"]["extra"]
    request["oldObject"], request["object"] = map(_bare, _objects(request))
    missing = (size - len(_encoded(review))) // 2 - len(f',"{_PADDING}":""')
    for obj in _objects(request) if missing > 0 else ():
        obj["metadata"]["annotations"][_PADDING] = "x" * missing


def _bare(obj: Object) -> Object:
    meta, template = obj["metadata"], obj["spec"]["template"]
    marks = {key: value for key, value in meta["annotations"].items() if key == _MARK}
    restarted = {"metadata": {"annotations": found}} if (found := template["metadata"].get("annotations")) else {}
    containers = [{name: container[name] for name in ("name", "image")} for container in template["spec"]["containers"]]
    return {
        "kind": obj["kind"],
        "apiVersion": obj["apiVersion"],
        "metadata": {"name": meta["name"], "namespace": meta["namespace"], "annotations": marks},
        "spec": {"replicas": obj["spec"]["replicas"], "template": {**restarted, "spec": {"containers": containers}}},
    }

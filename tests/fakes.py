"""Fakes of what is around the core: a cluster, an audit log, a tracker, a clock, and an API server that asks us.

Each is asserted by what it holds, not by how it was called.
"""

import copy
import json
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, NamedTuple

from webhook.admission import AdmissionRequest, Object, Webhook, annotations, labels, metadata, parse_review
from webhook.break_glass import ASK, ASK_FOR, LABEL
from webhook.errors import ClusterUnavailable, TrackerError
from webhook.issues import Filed
from webhook.policy import Policy
from webhook.record import new_ulid
from webhook.review import AdmissionReviewer

KEY = b"k" * 32
NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
WHY = "INC-42 checkout is down"

ALICE = {"username": "alice", "groups": ["developers", "system:authenticated"]}
BOB = {"username": "bob", "groups": ["developers", "system:authenticated"]}
MALLORY = {"username": "mallory", "groups": ["system:authenticated"]}
ARGOCD = {"username": "system:serviceaccount:argocd:argocd-application-controller", "uid": "a1", "groups": []}
DEPLOYER = {"username": "system:serviceaccount:ci:deployer", "uid": "d1", "groups": ["system:serviceaccounts"]}
CONTROLLER = {"username": "system:serviceaccount:driftgate:driftgate-controller", "uid": "c1", "groups": []}

LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
TRACKING = "argocd.argoproj.io/tracking-id"


def deployment(replicas: int = 3, image: str = "web:1") -> Object:
    """Return the Deployment shop/web as Argo CD's server-side apply left it."""
    container = {"name": "web", "image": image, "env": [{"name": "LEVEL", "value": "info"}]}
    owned = {
        "f:metadata": {"f:annotations": {f"f:{TRACKING}": {}}},
        "f:spec": {
            "f:replicas": {},
            "f:template": {
                "f:spec": {
                    "f:containers": {
                        'k:{"name":"web"}': {
                            ".": {},
                            "f:name": {},
                            "f:image": {},
                            "f:env": {'k:{"name":"LEVEL"}': {".": {}, "f:name": {}, "f:value": {}}},
                        }
                    }
                }
            },
        },
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": "web",
            "namespace": "shop",
            "uid": "u1",
            "annotations": {TRACKING: "shop-prod:apps/Deployment:shop/web"},
            "managedFields": [
                {
                    "manager": "argocd-controller",
                    "operation": "Apply",
                    "apiVersion": "apps/v1",
                    "fieldsType": "FieldsV1",
                    "fieldsV1": owned,
                }
            ],
        },
        "spec": {"replicas": replicas, "template": {"spec": {"containers": [container]}}},
    }


def secret(**values: str) -> Object:
    """Return a Secret shop/web of Argo CD."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": "web",
            "namespace": "shop",
            "annotations": {TRACKING: "shop-prod:/Secret:shop/web"},
        },
        "data": dict(values),
    }


RESOURCES = {
    "Deployment": ("apps", "v1", "deployments"),
    "Secret": ("", "v1", "secrets"),
    "ConfigMap": ("", "v1", "configmaps"),
    "Namespace": ("", "v1", "namespaces"),
}


def review_of(
    operation: str,
    *,
    old: Object | None = None,
    new: Object | None = None,
    user: Any = None,
    sub_resource: str = "",
    name: str | None = None,
    **fields: Any,
) -> bytes:
    """Return the AdmissionReview that the API server sends about a write."""
    shown = old or new or {}
    group, version, resource = RESOURCES[shown.get("kind", "Deployment")]
    kind = {"group": group, "version": version, "kind": shown.get("kind")}
    if sub_resource == "scale":
        replicas = {"spec": {"replicas": ((old or {}).get("spec") or {}).get("replicas")}}
        kind = {"group": "autoscaling", "version": "v1", "kind": "Scale"}
        old = {"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": metadata(shown), **replicas}
    request = {
        "uid": "e911857d",
        "kind": kind,
        "resource": {"group": group, "version": version, "resource": resource},
        "subResource": sub_resource,
        "operation": operation,
        "namespace": metadata(shown).get("namespace", ""),
        "name": metadata(shown).get("name", "") if name is None else name,
        "userInfo": user or ALICE,
        "object": new,
        "oldObject": old,
        **fields,
    }
    return json.dumps({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}).encode()


def request_of(operation: str, **fields: Any) -> AdmissionRequest:
    """Return the same, parsed."""
    return parse_review(review_of(operation, **fields))


def asking(obj: Object, why: str = WHY, duration: str | None = None) -> Object:
    """Return a copy of `obj` that asks for break-glass."""
    changed = copy.deepcopy(obj)
    found = changed["metadata"].setdefault("annotations", {})
    found[ASK] = why
    if duration is not None:
        found[ASK_FOR] = duration
    return changed


def apply_patch(obj: Object, patch: Any) -> Object:
    """Return `obj` with a JSON Patch (add, remove, test) applied; ValueError where it does not fit."""
    changed = copy.deepcopy(obj)
    for operation in patch:
        *parents, last = [p.replace("~1", "/").replace("~0", "~") for p in operation["path"].split("/")[1:]]
        place: Any = changed
        for part in parents:
            if not isinstance(place, dict) or part not in place:
                raise ValueError(f"there is no {operation['path']}")
            place = place[part]
        if operation["op"] == "add":
            place[last] = copy.deepcopy(operation["value"])
        elif last not in place or (operation["op"] == "test" and place[last] != operation["value"]):
            raise ValueError(f"{operation} does not fit")
        elif operation["op"] == "remove":
            del place[last]
    return changed


class Clock:
    """The time, which a test moves."""

    def __init__(self, now: datetime = NOON) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now

    def forward(self, **span: float) -> None:
        self.now += timedelta(**span)

    def new_id(self) -> str:
        return new_ulid(now=self.now.timestamp)


class FakeCluster:
    """Holds `objects` by (group, resource, namespace, name), and in `rights` who may break the glass."""

    def __init__(self, *objects: Object, rights: Any = ()) -> None:
        self.objects: dict[tuple[str, str, str, str], Object] = {}
        self.rights = set(rights)
        self.down = False
        for obj in objects:
            self.put(obj)

    def put(self, obj: Object) -> None:
        self.objects[self.place(obj)] = copy.deepcopy(obj)

    @staticmethod
    def place(obj: Object) -> tuple[str, str, str, str]:
        group, _, resource = RESOURCES[obj["kind"]]
        return (group, resource, metadata(obj).get("namespace", ""), metadata(obj)["name"])

    def _check(self) -> None:
        if self.down:
            raise ClusterUnavailable("the API server did not answer (FakeError)")

    def get(self, resource, namespace, name):
        self._check()
        return copy.deepcopy(self.objects.get((resource.group, resource.resource, namespace, name)))

    def may_break_glass(self, user, resource, namespace, name):  # noqa: ARG002 -- the names are the Protocol's
        self._check()
        return user.username in self.rights

    def json_patch(self, resource, namespace, name, patch):
        self._check()
        place = (resource.group, resource.resource, namespace, name)
        if place not in self.objects:
            return None
        try:
            self.objects[place] = apply_patch(self.objects[place], patch)
        except ValueError as error:
            raise ClusterUnavailable("the API server refused PATCH: 422") from error
        return copy.deepcopy(self.objects[place])

    def stamped_objects(self, selector):
        self._check()
        key, _, value = selector.partition("=")
        for (group, resource, _, _), obj in sorted(self.objects.items()):
            if labels(obj).get(key) == value:
                yield _Resource(group, resource, RESOURCES[obj["kind"]][1]), copy.deepcopy(obj)


class _Resource(NamedTuple):
    group: str
    resource: str
    version: str


class FakeAuditLog:
    """Holds `records`."""

    def __init__(self) -> None:
        self.records: list[Any] = []
        self.closed = False

    def append(self, record):
        self.records.append(record)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def close(self) -> None:
        self.closed = True


class FakeTracker:
    """Holds `issues` and `comments` by marker, comments with their keys."""

    def __init__(self) -> None:
        self.issues: dict[str, Any] = {}
        self.comments: dict[str, dict[str, str]] = {}
        self.closed: dict[str, str] = {}
        self.down = False

    def _check(self) -> None:
        if self.down:
            raise TrackerError("the tracker does not answer")

    def _filed(self, marker: str) -> Filed:
        number = list(self.issues).index(marker) + 1
        return Filed(number=number, url=f"https://git.example.org/issues/{number}")

    def file(self, issue):
        self._check()
        self.issues.setdefault(issue.marker, issue)
        return self._filed(issue.marker)

    def find(self, marker):
        self._check()
        return self._filed(marker) if marker in self.issues else None

    def comment(self, marker, text, *, key):
        self._check()
        if marker not in self.issues:
            raise TrackerError(f"there is no issue {marker}")
        self.comments.setdefault(marker, {}).setdefault(key, text)

    def close(self, marker, text):
        self._check()
        self.closed.setdefault(marker, text)


class Outcome(NamedTuple):
    """What came of a write."""

    allowed: bool
    reason: str
    message: str
    warnings: list[str]
    patch: list[Any]
    stored: Any  # the object, or None


class ApiServer:
    """Asks /mutate, applies its patch, asks /validate, stores: as the real one does, over `cluster`.

    `skews` are the clocks of the replicas that answer, in seconds off: the calls go to one after the other.
    `mutates=False`: the mutating webhook is down (failurePolicy Ignore). `reinvokes`: /mutate is called once more.
    """

    def __init__(self, *objects: Object, rights: Any = ("alice",), policy: Policy | None = None, skews=(0,)) -> None:
        self.cluster = FakeCluster(*objects, rights=rights)
        self.log = FakeAuditLog()
        self.clock = Clock()
        self.mutates = True
        self.reinvokes = False
        self._replicas = [
            AdmissionReviewer(
                policy or Policy(),
                seal_key=KEY,
                cluster=self.cluster,
                audit_log=self.log,
                now=partial(self._now, timedelta(seconds=skew)),
                new_id=self.clock.new_id,
            )
            for skew in skews
        ]

    def _now(self, skew: timedelta) -> datetime:
        return self.clock.now + skew

    def ask(self, webhook: Webhook, body: bytes) -> Any:
        """Return what the next replica answers."""
        self._replicas.append(self._replicas.pop(0))
        return json.loads(self._replicas[-1].judge(webhook, parse_review(body)).body)["response"]

    def update(self, new: Object, user: Any = None, **fields: Any) -> Outcome:
        return self._write("UPDATE", self.stored(new), new, user, **fields)

    def create(self, new: Object, user: Any = None, **fields: Any) -> Outcome:
        return self._write("CREATE", None, new, user, **fields)

    def delete(self, obj: Object, user: Any = None, **fields: Any) -> Outcome:
        return self._write("DELETE", self.stored(obj), None, user, **fields)

    def scale(self, obj: Object, replicas: int, user: Any = None) -> Outcome:
        old = self.stored(obj)
        new = {"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {}, "spec": {"replicas": replicas}}
        answer = self.ask(Webhook.VALIDATE, review_of("UPDATE", old=old, new=new, user=user, sub_resource="scale"))
        if answer["allowed"]:
            old["spec"]["replicas"] = replicas
            self.cluster.put(old)
        return self._outcome(answer, [], self.stored(obj))

    def stored(self, obj: Object) -> Any:
        """Return the object as it is stored; None if it is not."""
        return copy.deepcopy(self.cluster.objects.get(FakeCluster.place(obj)))

    def _write(self, operation: str, old: Any, new: Any, user: Any, **fields: Any) -> Outcome:
        patch: list[Any] = []
        for _ in range((1 + self.reinvokes) * self.mutates):
            answer = self.ask(Webhook.MUTATE, review_of(operation, old=old, new=new, user=user, **fields))
            assert answer["allowed"], "mutate refuses nothing"
            patch = _patch_of(answer)
            if new is None:
                assert not patch, "a patch on DELETE is an error in the API server"
            else:
                new = _named(apply_patch(new, patch))
        answer = self.ask(Webhook.VALIDATE, review_of(operation, old=old, new=new, user=user, **fields))
        assert "patch" not in answer
        if answer["allowed"] and not fields.get("dryRun"):
            if new is None:
                del self.cluster.objects[FakeCluster.place(old)]
            else:
                self.cluster.put(new)
        return self._outcome(answer, patch, self.stored(old or new))

    @staticmethod
    def _outcome(answer: Any, patch: list[Any], stored: Object | None) -> Outcome:
        return Outcome(
            allowed=answer["allowed"],
            reason=answer.get("auditAnnotations", {}).get("reason", ""),
            message=answer.get("status", {}).get("message", ""),
            warnings=answer.get("warnings", []),
            patch=patch,
            stored=stored,
        )


def _named(obj: Object) -> Object:
    """Resolve `generateName`, which the API server does after /mutate."""
    meta = metadata(obj)
    return {**obj, "metadata": {"name": f"{meta.get('generateName')}x7k2p", **meta}}


def _patch_of(answer: Any) -> list[Any]:
    import base64

    return json.loads(base64.b64decode(answer["patch"])) if "patch" in answer else []


def without(obj: Object, *keys: str, label: bool = False) -> Object:
    """Return a copy of `obj` without these annotations, and without our label where `label` says so."""
    changed = copy.deepcopy(obj)
    for key in keys:
        annotations(changed).pop(key, None)
    if label:
        labels(changed).pop(LABEL, None)
    return changed

"""AdmissionReview JSON to `AdmissionRequest`, and `AdmissionResponse` back to JSON. Nobody else sees the wire.

The envelope is decoded by type, the two objects only when somebody asks for them: an object that nobody manages
costs next to nothing. Easy to get wrong: DELETE has `object: null`, also at /mutate; the name is empty where a
collection is deleted (it is in `oldObject`) and where `generateName` is not resolved yet.

Format: Kubernetes API reference, admission.k8s.io/v1.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any

import msgspec

from webhook.errors import MalformedReview

Object = dict[str, Any]
"""A Kubernetes object, or a part of one, as decoded JSON."""

PatchOperation = dict[str, Any]
"""One operation of a JSON Patch (RFC 6902)."""

_NULL = msgspec.Raw(b"null")


class Webhook(StrEnum):
    """Which of our two webhooks is asked."""

    MUTATE = "mutate"
    VALIDATE = "validate"


class Operation(StrEnum):
    """What is done to the object."""

    CREATE = "CREATE"
    UPDATE = "UPDATE"
    DELETE = "DELETE"
    CONNECT = "CONNECT"


class GroupVersionKind(msgspec.Struct, frozen=True):
    """A kind, as in `request.kind`."""

    kind: str
    group: str = ""
    version: str = ""


class GroupVersionResource(msgspec.Struct, frozen=True):
    """A resource, as in `request.resource`."""

    resource: str
    group: str = ""
    version: str = ""


class UserInfo(msgspec.Struct, frozen=True):
    """Who writes. `uid` is empty for certificates, and for everybody who is impersonated."""

    username: str = ""
    uid: str = ""
    groups: tuple[str, ...] = ()


class AdmissionRequest(msgspec.Struct, frozen=True, rename="camel", dict=True, kw_only=True):
    """One write, as the API server asks about it."""

    uid: str
    kind: GroupVersionKind
    resource: GroupVersionResource
    operation: Operation
    sub_resource: str = ""
    namespace: str = ""
    requested_name: str = msgspec.field(default="", name="name")
    user: UserInfo = msgspec.field(default=UserInfo(), name="userInfo")
    dry_run: bool | None = False
    raw_object: msgspec.Raw = msgspec.field(default=_NULL, name="object")
    raw_old_object: msgspec.Raw = msgspec.field(default=_NULL, name="oldObject")

    @cached_property
    def object(self) -> Object | None:
        """The object as it would be stored; None for DELETE."""
        return _decode_object(self.raw_object, "object")

    @cached_property
    def old_object(self) -> Object | None:
        """The object as it is stored; None for CREATE."""
        return _decode_object(self.raw_old_object, "oldObject")

    @cached_property
    def name(self) -> str:
        """The object's name, also where a collection is deleted; empty while `generateName` is not resolved."""
        if self.requested_name:
            return self.requested_name
        try:
            return str(metadata(self.object or self.old_object).get("name") or "")
        except MalformedReview:
            return ""

    @property
    def size(self) -> int:
        """Bytes of JSON in both objects."""
        return len(memoryview(self.raw_object)) + len(memoryview(self.raw_old_object))


class _AdmissionReview(msgspec.Struct, rename="camel"):
    api_version: str
    kind: str
    request: AdmissionRequest | None = None


_review_decoder = msgspec.json.Decoder(_AdmissionReview)
_object_decoder = msgspec.json.Decoder(dict[str, Any] | None)
_encoder = msgspec.json.Encoder()


def parse_review(body: bytes) -> AdmissionRequest:
    """Read the request out of an AdmissionReview.

    Raises MalformedReview if `body` is not JSON, no AdmissionReview of admission.k8s.io/v1, or lacks an object that
    its operation must have. The objects are checked no further than that they are there.
    """
    try:
        review = _review_decoder.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise MalformedReview(f"the body is no AdmissionReview: {error}") from None
    if (review.api_version, review.kind) != ("admission.k8s.io/v1", "AdmissionReview"):
        raise MalformedReview(
            "the body is no AdmissionReview of admission.k8s.io/v1 "
            f"(apiVersion {review.api_version[:60]!r}, kind {review.kind[:60]!r})"
        )
    if review.request is None:
        raise MalformedReview("the AdmissionReview has no request")
    return _checked(review.request)


def _checked(request: AdmissionRequest) -> AdmissionRequest:
    needs_object = request.operation in {Operation.CREATE, Operation.UPDATE}
    needs_old_object = request.operation in {Operation.UPDATE, Operation.DELETE}
    if needs_object and bytes(request.raw_object) == b"null":
        raise MalformedReview(f"a review of {request.operation} needs request.object, which is missing")
    if needs_old_object and bytes(request.raw_old_object) == b"null":
        raise MalformedReview(f"a review of {request.operation} needs request.oldObject, which is missing")
    return request


def _decode_object(raw: msgspec.Raw, where: str) -> Object | None:
    try:
        value: Object | None = _object_decoder.decode(raw)
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise MalformedReview(f"request.{where} is no Kubernetes object: {error}") from None
    if value is not None and not isinstance(value.get("metadata", {}), dict):
        raise MalformedReview(f"request.{where}.metadata is no object")
    return value


def metadata(obj: Object | None) -> Object:
    """Return the metadata of `obj`, empty if there is none."""
    found = obj.get("metadata") if obj else None
    return found if isinstance(found, dict) else {}


def annotations(obj: Object | None) -> dict[str, str]:
    """Return the annotations of `obj`, empty if there are none."""
    found = metadata(obj).get("annotations")
    return found if isinstance(found, dict) else {}


def labels(obj: Object | None) -> dict[str, str]:
    """Return the labels of `obj`, empty if there are none."""
    found = metadata(obj).get("labels")
    return found if isinstance(found, dict) else {}


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionResponse:
    """Our answer. `message` and `code` matter only where it is not allowed; a `patch` only at /mutate."""

    uid: str
    allowed: bool
    message: str = ""
    reason: str = ""
    code: int = 403
    warnings: Sequence[str] = ()
    audit_annotations: Mapping[str, str] = field(default_factory=dict)
    patch: Sequence[PatchOperation] = ()

    def encode(self) -> bytes:
        """Return the AdmissionReview to send back, as JSON."""
        response: Object = {"uid": self.uid, "allowed": self.allowed}
        if not self.allowed:
            response["status"] = {
                "status": "Failure",
                "message": self.message,
                "reason": self.reason,
                "code": self.code,
            }
        if self.warnings:
            response["warnings"] = list(self.warnings)
        if self.audit_annotations:
            response["auditAnnotations"] = dict(self.audit_annotations)
        if self.patch:
            response["patchType"] = "JSONPatch"
            response["patch"] = _encoder.encode(list(self.patch))  # bytes are encoded as base64, as the API wants them
        return _encoder.encode({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response})


def metadata_patch(obj: Object, section: str, wanted: Mapping[str, str | None]) -> list[PatchOperation]:
    """Return the JSON Patch that gives `obj` the labels or annotations in `wanted`; None takes a key away.

    `section` is "labels" or "annotations". What is right already is left alone, so a second call patches nothing.
    """
    present = labels(obj) if section == "labels" else annotations(obj)
    base = f"/metadata/{section}"
    changes: list[PatchOperation] = []
    for key, value in wanted.items():
        pointer = f"{base}/{key.replace('~', '~0').replace('/', '~1')}"
        if value is None and key in present:
            changes.append({"op": "remove", "path": pointer})
        elif value is not None and present.get(key) != value:
            changes.append({"op": "add", "path": pointer, "value": value})
    if changes and not present:
        changes.insert(0, {"op": "add", "path": base, "value": {}})
    return changes

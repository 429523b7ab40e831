"""The wire format: what is read out of an AdmissionReview, and what is sent back."""

import base64
import copy
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import recordings
from tests.fakes import apply_patch
from webhook.admission import (
    AdmissionRequest,
    AdmissionResponse,
    Operation,
    annotations,
    labels,
    metadata,
    metadata_patch,
    parse_review,
)
from webhook.errors import MalformedReview

LAW = settings(max_examples=100, deadline=None, database=None)
REVIEW = json.loads(recordings.body("kubectl-edit.csa.validate"))
DEEP = b"[" * 100_000


def body(without=(), **fields):
    """Return a recorded review with some fields of its request replaced, and some left out."""
    review = copy.deepcopy(REVIEW)
    review["request"].update(fields)
    for name in without:
        del review["request"][name]
    return json.dumps(review).encode()


def test_a_review_is_read():
    """What the API server says about a write has the same names here, in snake_case."""
    request = parse_review(body())

    assert (request.operation, request.namespace, request.name) == (Operation.UPDATE, "guestbook", "web")
    assert (request.kind.group, request.kind.kind) == ("apps", "Deployment")
    assert (request.resource.resource, request.sub_resource) == ("deployments", "")
    assert request.user.username == "alice"
    assert not request.dry_run
    assert request.object is not None
    assert request.old_object is not None
    assert request.object["kind"] == "Deployment"


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"no JSON",
        b"\xff\xfe",
        b'{"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview"}',
        b'{"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": null}',
        b'{"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": []}',
        b'{"apiVersion": "admission.k8s.io/v1beta1", "kind": "AdmissionReview", "request": null}',
        json.dumps({**REVIEW, "kind": "ConversionReview"}).encode(),
        json.dumps({**REVIEW, "apiVersion": "admission.k8s.io/v1beta1"}).encode(),
        body(operation="PATCH"),
        body(operation=None),
        body(uid=7),
        body(kind="Deployment"),
        body(userInfo={"username": "alice", "groups": "developers"}),
        body(name=["web"]),
        body(dryRun="yes"),
        body(without=["uid"]),
        body(without=["kind"]),
        body(without=["resource"]),
        body(without=["operation"]),
        body() + b"}",
        body()[:-1],
        DEEP,
        b'{"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "other": ' + DEEP,
        b'{"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {"object": ' + DEEP,
    ],
)
def test_what_is_no_review_is_malformed(sent):
    """Whatever else arrives is refused with a sentence, and nothing else is raised."""
    with pytest.raises(MalformedReview) as raised:
        parse_review(sent)

    assert 10 < len(str(raised.value)) < 400
    assert "Traceback" not in str(raised.value)


@pytest.mark.parametrize(
    ("operation", "missing", "is_read"),
    [
        ("CREATE", "object", False),
        ("CREATE", "oldObject", True),
        ("UPDATE", "object", False),
        ("UPDATE", "oldObject", False),
        ("DELETE", "object", True),
        ("DELETE", "oldObject", False),
        ("CONNECT", "object", True),
        ("CONNECT", "oldObject", True),
    ],
)
@pytest.mark.parametrize("is_null", [True, False])
def test_each_operation_has_its_objects(operation, missing, is_read, is_null):
    """A review without an object that its operation must have is malformed, absent or null alike."""
    sent = body(operation=operation, **{missing: None}) if is_null else body([missing], operation=operation)

    if is_read:
        request = parse_review(sent)
        assert (request.object if missing == "object" else request.old_object) is None
    else:
        with pytest.raises(MalformedReview, match=rf"{operation} needs request\.{missing}"):
            parse_review(sent)


@pytest.mark.parametrize("obj", ["text", 7, True, [], [{}], {"metadata": []}, {"metadata": "x"}])
def test_an_object_that_is_none_is_malformed_when_it_is_looked_at(obj):
    """The objects are decoded late, and refused no less then."""
    request = parse_review(body(object=obj))

    with pytest.raises(MalformedReview, match=r"request\.object"):
        _ = request.object


def test_an_object_is_nested_no_deeper_than_it_can_be_read():
    """Nesting without end is malformed, whether it is found at once or when the object is looked at."""

    def read(depth):
        nested = b'{"a":' * depth + b"1" + b"}" * depth
        return parse_review(body(object="@").replace(b'"@"', nested)).object

    assert read(64) is not None
    with pytest.raises(MalformedReview):
        read(200_000)


@pytest.mark.parametrize(
    ("recording", "name"),
    [
        ("deletecollection-configmaps.csa.1.validate", "kube-root-ca.crt"),
        ("deletecollection-configmaps.csa.1.mutate", "kube-root-ca.crt"),
        ("kubectl-edit.csa.validate", "web"),
        ("kubectl-delete.csa.validate", "web"),
    ],
)
def test_the_name_is_known_where_the_request_has_none(recording, name):
    """A deleted collection names no object in its requests: the old object does."""
    assert recordings.request(recording).name == name


def test_a_generated_name_is_empty_until_it_is_there():
    """`generateName` has no name at /mutate, and one in the object at /validate."""
    unresolved = {"metadata": {"generateName": "web-"}}
    resolved = {"metadata": {"generateName": "web-", "name": "web-x7k2p"}}

    names = [parse_review(body(operation="CREATE", name="", object=o)).name for o in (unresolved, resolved)]

    assert names == ["", "web-x7k2p"]


def looked_at(sent):
    """Read everything of a review that anybody asks for."""
    request = parse_review(sent)
    for obj in (request.object, request.old_object):
        assert all(isinstance(found, dict) for found in (metadata(obj), annotations(obj), labels(obj)))
    assert isinstance(request.name, str)
    assert request.size >= 0


@LAW
@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_malformed(sent):
    """No body makes anything but MalformedReview."""
    with pytest.raises(MalformedReview):
        looked_at(sent)


_SCRAPS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=5),
    st.sampled_from([[], {}, [[]], {"metadata": 1}, {"metadata": {"annotations": [1], "labels": "x", "name": {}}}]),
)


def _places(value, at=()):
    yield at
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in items:
        yield from _places(child, (*at, key))


_PLACES = sorted((p for p in _places(REVIEW) if 0 < len(p) < 6), key=repr)


@LAW
@given(st.sampled_from(_PLACES), _SCRAPS)
def test_a_recorded_review_with_one_value_replaced_is_read_or_malformed(place, scrap):
    """Whatever stands anywhere in a review, it is read, or MalformedReview is raised."""
    review = copy.deepcopy(REVIEW)
    inside = review
    for key in place[:-1]:
        inside = inside[key]
    inside[place[-1]] = scrap

    try:
        looked_at(json.dumps(review).encode())
    except MalformedReview as error:
        assert str(error)  # noqa: PT017 -- either is right


@LAW
@given(st.integers(0, len(body())), st.binary(max_size=4))
def test_a_recorded_review_with_some_bytes_put_in_is_read_or_malformed(at, scrap):
    """Broken JSON is no AdmissionReview either."""
    sent = body()
    try:
        looked_at(sent[:at] + scrap + sent[at + len(scrap) :])
    except MalformedReview as error:
        assert str(error)  # noqa: PT017 -- either is right


def answered(**fields):
    return json.loads(AdmissionResponse(uid="u", **fields).encode())


def test_an_answer_says_no_more_than_it_has_to():
    """An allowed write without a patch is a uid and a yes."""
    assert answered(allowed=True) == {
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "response": {"uid": "u", "allowed": True},
    }


def test_a_denial_carries_its_status():
    """kubectl shows the message; the code is Forbidden unless said otherwise."""
    answer = answered(allowed=False, message="no", reason="Forbidden", audit_annotations={"verdict": "Deny"})

    assert answer["response"] == {
        "uid": "u",
        "allowed": False,
        "status": {"status": "Failure", "message": "no", "reason": "Forbidden", "code": 403},
        "auditAnnotations": {"verdict": "Deny"},
    }


def test_warnings_and_a_patch_are_sent():
    """A patch is a JSON Patch in base64, beside its type."""
    patch = [{"op": "add", "path": "/metadata/labels/a", "value": "ü"}]

    response = answered(allowed=True, warnings=("one", "two"), patch=patch)["response"]

    assert response["warnings"] == ["one", "two"]
    assert response["patchType"] == "JSONPatch"
    assert json.loads(base64.b64decode(response["patch"])) == patch
    assert "status" not in response


def test_the_keys_of_a_patch_are_escaped():
    """`~` and `/` have a meaning of their own in a JSON Pointer."""
    obj = {"metadata": {"annotations": {"a/b~c": "old", "gone/x": "y"}}}

    patch = metadata_patch(obj, "annotations", {"a/b~c": "new", "gone/x": None, "~1": "n"})

    assert patch == [
        {"op": "add", "path": "/metadata/annotations/a~1b~0c", "value": "new"},
        {"op": "remove", "path": "/metadata/annotations/gone~1x"},
        {"op": "add", "path": "/metadata/annotations/~01", "value": "n"},
    ]


_KEYS = st.text(alphabet="ab/~01", min_size=1, max_size=4)
_SECTIONS = st.sampled_from(["labels", "annotations"])


@LAW
@given(
    st.one_of(st.none(), st.dictionaries(_KEYS, st.text(max_size=3), max_size=4)),
    _SECTIONS,
    st.dictionaries(_KEYS, st.one_of(st.none(), st.text(max_size=3)), max_size=4),
)
def test_a_patch_gives_what_is_wanted_and_nothing_the_second_time(present, section, wanted):
    """Applied, every wanted key is as wanted and every other as before; asked again there is nothing left to patch."""
    obj = {"metadata": {"name": "web"} if present is None else {"name": "web", section: present}}

    patched = apply_patch(obj, metadata_patch(obj, section, wanted))

    expected = {key: value for key, value in {**(present or {}), **wanted}.items() if value is not None}
    assert patched["metadata"].get(section, {}) == expected
    assert metadata_patch(patched, section, wanted) == []
    assert patched["metadata"]["name"] == "web"


def test_a_request_is_a_value():
    """Two readings of one review are the same request."""
    first, second = parse_review(body()), parse_review(body())

    assert isinstance(first, AdmissionRequest)
    assert (first.uid, first.kind, first.user) == (second.uid, second.kind, second.user)

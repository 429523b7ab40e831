"""What is made up: stamps written by hand, reviews sent by nobody's API server, bodies that are no reviews."""

import base64
import http.client
import json
import shlex
import ssl

import pytest

from tests.e2e.terminal import (
    ASK,
    REASON,
    eventually,
    issue,
    issues_about,
    place_of,
    record_id,
    settled,
)
from webhook.demo.sample import ARGOCD, config_map

pytestmark = pytest.mark.e2e

STAMPED = ("id", "by", "until", "fields", "seal")
HANDS_OFF = "the stamps driftgate.dev/break-glass-... are driftgate's own and can't be written or removed by hand."
MIB = 1024 * 1024


@pytest.fixture(scope="module")
def shop(stage):
    """A place of Argo CD's with a ConfigMap, and a genuine stamp on another one."""
    place = place_of(stage, ARGOCD, "forged")
    place.deployed(config_map(), config_map("genuine"))
    place.opened(place.bob, "configmap/genuine")
    return place


def annotating(stamp):
    """Return the flags with which somebody writes a whole stamp, ask included."""
    keys = {"ask": ASK, **{name: f"{ASK}-{name}" for name in (*STAMPED, "for")}}
    return " ".join(shlex.quote(f"{keys[name]}={value}") for name, value in stamp.items() if name in keys)


# Stamps


@pytest.mark.parametrize("who", ["alice", "bob", "robot", "admin"])
@pytest.mark.parametrize("name", [*STAMPED, "label"])
def test_a_stamp_written_by_hand_is_refused(shop, who, name):
    """Nobody writes a part of a stamp, with or without the right to break the glass."""
    before = shop.look("configmap/settings")
    flags = f"annotate configmap/settings {ASK}-{name}=forged"
    if name == "label":
        flags = f"label configmap/settings {ASK}=active"

    said = getattr(shop, who)(flags)

    assert said.denial[0] == f"ConfigMap forged/settings: {HANDS_OFF}"
    assert record_id(said.denial)
    assert shop.look("configmap/settings") == before


@pytest.mark.parametrize("name", [*STAMPED, "label"])
def test_a_stamp_taken_away_by_hand_is_refused(shop, name):
    """Nor does anybody take a part of it away: an open window is ended by taking the ask away."""
    before = shop.stamp("configmap/genuine")
    key = ASK if name == "label" else f"{ASK}-{name}"

    said = shop.alice(f"{'label' if name == 'label' else 'annotate'} configmap/genuine {key}-")

    assert said.denial[0] == f"ConfigMap forged/genuine: {HANDS_OFF}"
    assert f"To end it: kubectl annotate configmap/genuine -n forged {ASK}-" in said.denial
    assert shop.stamp("configmap/genuine") == before


def test_a_stamp_copied_from_another_object_is_worth_nothing(shop):
    """A genuine stamp is sealed to its object: all of it, label and ask included, opens nothing elsewhere."""
    before = shop.look("configmap/settings")
    stamp = shop.stamp("configmap/genuine")
    annotations = {f"{ASK}-{name}": stamp[name] for name in STAMPED} | {ASK: stamp["ask"]}
    copied = {"metadata": {"annotations": annotations, "labels": {ASK: "active"}}, "data": {"theme": "light"}}

    said = shop.alice(f"patch configmap/settings --type=merge -p {shlex.quote(json.dumps(copied))}")

    assert said.denial[0] == f"ConfigMap forged/settings: {HANDS_OFF}"
    assert shop.look("configmap/settings") == before


def test_a_stamp_kept_from_an_earlier_window_is_worth_nothing(shop):
    """The stamp was genuine, and of this very object; its window is over."""
    what = "configmap/kept"
    shop.deployed(config_map("kept"))
    shop.opened(shop.bob, what)
    stamp = shop.stamp(what)
    assert shop.bob(f"annotate {what} {ASK}-")
    eventually(lambda: shop.is_free(what))

    said = shop.alice(f"annotate {what} {annotating(stamp)}")

    assert said.denial[0] == f"ConfigMap forged/kept: {HANDS_OFF}"
    assert shop.is_free(what)


def test_what_the_asker_forges_is_written_over(shop):
    """Who may break the glass and makes the stamp up along with the ask gets a real one."""
    what = "configmap/boaster"
    shop.deployed(config_map("boaster"))
    forged = {"ask": REASON, "by": "the-boss", "until": "2099-01-01T00:00:00Z", "fields": '["*"]', "seal": "0" * 64}

    said = shop.bob(f"annotate {what} {annotating(forged)}")

    assert said, said.stderr
    stamp = shop.stamp(what)
    assert (stamp["by"], stamp["ask"]) == ("bob", REASON)
    assert json.loads(stamp["fields"]) == []
    assert not set(forged.items()) & set(stamp.items()) - {("ask", REASON)}


def test_a_stamp_that_comes_from_git_opens_nothing(shop, stage):
    """The reconciler may write what it likes, a forged stamp and an old ask too; people find no open window."""
    manifest = config_map("from-git")
    annotations = {f"{ASK}-{name}": value for name, value in shop.stamp("configmap/genuine").items() if name in STAMPED}
    manifest["metadata"] |= {"annotations": annotations | {ASK: REASON}, "labels": {ASK: "active"}}
    shop.deployed(manifest)

    said = shop.bob("""patch configmap/from-git -p '{"data":{"theme":"light"}}'""")

    assert said.denial[0].endswith("this change would drift from Git:")
    assert shop.deploy({**manifest, "data": {"theme": "blue"}})
    settled(stage)
    assert not issues_about(stage, "forged/from-git")


# Reviews that no API server sent


class Caller:
    """Somebody who reaches the webhook's port."""

    def __init__(self, stage):
        self._port = stage.port
        self._tls = ssl.create_default_context(cafile=stage.directory / "certificates" / "ca.crt")

    def __call__(self, body=b"", *, method="POST", path="/validate", content_type="application/json"):
        """Send a request; return status, text and headers."""
        connection = http.client.HTTPSConnection("localhost", self._port, timeout=20, context=self._tls)
        try:
            text = body if isinstance(body, bytes) else json.dumps(body).encode()
            connection.request(method, path, text, {"Content-Type": content_type} if content_type else {})
            answer = connection.getresponse()
            return answer.status, answer.read().decode(), answer.headers
        finally:
            connection.close()


@pytest.fixture
def call(stage):
    """A caller; whatever it is told, it is no stack trace."""
    return Caller(stage)


def review(old, new, *, operation="UPDATE", sub_resource="", user="alice", groups=("developers",), **more):
    """Return an AdmissionReview of a write to a ConfigMap, as an API server would send it."""
    place = (new or old)["metadata"]
    request = {
        "uid": "00000000-0000-4000-8000-000000000000",
        "kind": {"group": "", "version": "v1", "kind": "ConfigMap"},
        "resource": {"group": "", "version": "v1", "resource": "configmaps"},
        "subResource": sub_resource,
        "name": place["name"],
        "namespace": place["namespace"],
        "operation": operation,
        "userInfo": {"username": user, "groups": [*groups, "system:authenticated"]},
        "object": new,
        "oldObject": old,
        "dryRun": False,
        **more,
    }
    return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}


def changed(obj, theme, **annotations):
    """Return the object with other data, and with annotations."""
    meta = obj["metadata"]
    return obj | {"data": {"theme": theme}, "metadata": meta | {"annotations": meta["annotations"] | annotations}}


def test_a_forged_review_files_nothing(shop, stage, call):
    """Whoever says that an administrator broke the glass is told what a real one would be; nothing comes of it."""
    shop.deployed(config_map("slandered"))
    old = shop.get("configmap/slandered")
    new = changed(old, "forged", **{ASK: "INC-666 never happened"})
    admin = {"user": "admin", "groups": ("system:masters",)}

    status, text, _ = call(review(old, new, **admin), path="/mutate")
    patch = json.loads(text)["response"]["patch"]
    stamped = apply_patch(new, patch)
    asked, _, _ = call(review(old, stamped, **admin))
    again, _, _ = call(review(stamped, changed(stamped, "forged-too"), **admin))

    assert (status, asked, again) == (200, 200, 200)
    settled(stage)
    assert not issues_about(stage, "slandered")
    assert shop.is_free("configmap/slandered")
    assert not shop.alice("""patch configmap/slandered -p '{"data":{"theme":"light"}}'""")
    assert not shop.alice("replace -f -", stamped)


def apply_patch(obj, patch):
    """Return the object with the annotations and labels that a JSON Patch in base64 adds."""
    copy = json.loads(json.dumps(obj))
    for operation in json.loads(base64.b64decode(patch)):
        assert operation["op"] == "add"
        _, meta, section, *key = operation["path"].split("/")
        target = copy[meta].setdefault(section, {})
        if key:
            target[key[0].replace("~1", "/")] = operation["value"]
    return copy


def test_a_forged_review_about_an_open_window_is_not_told(shop, stage, call):
    """Somebody who can read a genuine stamp makes up a further change in its window: the issue does not repeat it."""
    what = "configmap/quoted"
    shop.deployed(config_map("quoted"))
    window = shop.opened(shop.bob, what)
    assert shop.bob(f"""patch {what} -p '{{"data":{{"theme":"light"}}}}'""")
    issue(stage, window)
    stored = shop.get(what)

    status, text, _ = call(review(stored, changed(stored, "never-stored"), user="admin", groups=("system:masters",)))

    assert status == 200, text
    settled(stage)
    assert "never-stored" not in issue(stage, window)


def test_a_forged_deletion_is_not_told(shop, stage, call):
    """The object is still there, so nobody deleted it."""
    what = "configmap/alive"
    shop.deployed(config_map("alive"))
    window = shop.opened(shop.bob, what)

    status, _, _ = call(review(shop.get(what), None, operation="DELETE", user="admin", groups=("system:masters",)))

    assert status == 200
    settled(stage)
    assert not issues_about(stage, window)
    assert shop.stamp(what)["id"] == window


# What is no review


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"", 400, "the body is no AdmissionReview"),
        (b"{", 400, "the body is no AdmissionReview"),
        (b"[" * 100_000, 400, "the body is no AdmissionReview"),
        (b"\xff\xfe{}", 400, "the body is no AdmissionReview"),
        ({"kind": "AdmissionReview"}, 400, "the body is no AdmissionReview"),
        ({"apiVersion": "v1", "kind": "Pod"}, 400, "the body is no AdmissionReview of admission.k8s.io/v1"),
        ({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview"}, 400, "the AdmissionReview has no request"),
    ],
    ids=["nothing", "half", "deep", "no text", "no version", "a pod", "no request"],
)
@pytest.mark.parametrize("path", ["/validate", "/mutate"])
def test_malformed_json_gets_400_and_a_sentence(call, path, body, status, said):
    """What is no AdmissionReview is answered with what is wrong about it."""
    answered, text, _ = call(body, path=path)

    assert answered == status
    assert text.startswith(said)
    assert "Traceback" not in text


def test_a_review_without_its_old_object_gets_400(shop, call):
    """An UPDATE needs both objects, a DELETE the old one."""
    found = shop.get("configmap/settings")

    for operation, new in (("UPDATE", found), ("DELETE", None)):
        made = review(found, new, operation=operation)
        del made["request"]["oldObject"]
        status, text, _ = call(made)
        assert (status, text.strip()) == (
            400,
            f"a review of {operation} needs request.oldObject, which is missing",
        )


@pytest.mark.parametrize("objects", [{"metadata": []}, {"metadata": {"annotations": [1]}}, {"metadata": None}, "text"])
def test_an_object_that_is_none_is_answered(shop, call, objects):
    """Odd objects are refused or let through, with a sentence."""
    found = shop.get("configmap/settings")

    status, text, _ = call(review(found, found) | {"request": review(found, found)["request"] | {"object": objects}})

    assert status in {200, 400}
    assert "Traceback" not in text
    assert "internal error" not in text


def test_a_body_of_5_mib_is_answered(shop, call):
    """A large object is judged as any other."""
    found = shop.get("configmap/settings")
    large = found | {"data": {"theme": "x" * (5 * MIB)}}

    status, text, _ = call(review(found, large))

    response = json.loads(text)["response"]
    assert status == 200
    assert response["allowed"] is False
    assert "  .data.theme: dark -> xxx" in response["status"]["message"]
    assert len(text) < 2000


def test_a_body_that_is_too_large_gets_413(call):
    """More than two objects of the largest size are no review."""
    status, text, _ = call(b'{"' + b"x" * (8 * MIB) + b'"}')

    assert (status, text.strip()) == (413, "the body is larger than 7 MiB")


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", None])
def test_a_wrong_content_type_gets_415(shop, call, content_type):
    """A review is sent as JSON."""
    found = shop.get("configmap/settings")

    status, text, _ = call(review(found, found), content_type=content_type)

    assert (status, text.strip()) == (415, "the body must be an AdmissionReview, sent as application/json")


def test_an_unknown_subresource_is_judged(shop, call):
    """What is not known to be harmless is looked at."""
    found = shop.get("configmap/settings")

    status, text, _ = call(review(found, changed(found, "light"), sub_resource="reticulate"))

    response = json.loads(text)["response"]
    assert (status, response["allowed"]) == (200, False)
    assert "this change would drift from Git" in response["status"]["message"]


def test_a_scale_of_what_is_not_there_can_not_be_judged(shop, call):
    """The parent of a scale that can't be found: a sentence, and no stack trace."""
    scale = {
        "apiVersion": "autoscaling/v1",
        "kind": "Scale",
        "metadata": {"name": "nobody", "namespace": "forged"},
        "spec": {"replicas": 3},
    }
    made = review(scale, scale, sub_resource="scale")
    made["request"] |= {
        "kind": {"group": "autoscaling", "version": "v1", "kind": "Scale"},
        "resource": {"group": "apps", "version": "v1", "resource": "deployments"},
    }

    status, text, _ = call(made)

    response = json.loads(text)["response"]
    assert (status, response["allowed"]) == (200, False)
    assert response["status"]["message"].startswith("driftgate could not judge this write to Scale forged/nobody: ")


@pytest.mark.parametrize(
    ("method", "path", "status", "said"),
    [
        ("GET", "/validate", 405, "this path is asked otherwise: POST to /validate or /mutate"),
        ("PUT", "/mutate", 405, "this path is asked otherwise: POST to /validate or /mutate"),
        ("POST", "/", 404, "there is nothing here: POST to /validate or /mutate"),
        ("GET", "/../../etc/passwd", 404, "there is nothing here"),
        ("POST", "/healthz", 405, "this path is asked otherwise"),
    ],
)
def test_other_requests_are_told_where_to_go(call, method, path, status, said):
    """A path or a method that is not ours gets a sentence."""
    answered, text, headers = call(method=method, path=path)

    assert answered == status
    assert text.startswith(said)
    if status == 405:
        assert headers["Allow"]


def test_health_is_told(call):
    """The two that a kubelet asks."""
    assert call(method="GET", path="/healthz")[:2] == (200, "ok\n")
    assert call(method="GET", path="/readyz")[:2] == (200, "ok\n")


def test_none_of_it_left_a_stack_trace(stage):
    """The log has one line of JSON for each event, and nothing else."""
    for line in (stage.directory / "serve.log").read_text().splitlines():
        assert json.loads(line)["event"]

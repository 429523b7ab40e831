"""What /mutate writes, and what it leaves alone."""

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes import ALICE, ARGOCD, BOB, CONTROLLER, KEY, WHY, ApiServer, apply_patch, asking, deployment, without
from webhook.admission import annotations, labels
from webhook.break_glass import ASK, ASK_FOR, FIELDS, ID, LABEL, SEAL, STAMPS, UNTIL, WRITE, ObjectRef, read_stamp

WEB = ObjectRef(group="apps", kind="Deployment", namespace="shop", name="web")
IMAGE = '.spec.template.spec.containers[name="web"].image'


def opened(**settings):
    server = ApiServer(deployment(), rights=["alice", "bob"], **settings)
    return server, server.update(asking(deployment())).stored


def changed(obj, **spec):
    return {**copy.deepcopy(obj), "spec": {**obj["spec"], **spec}}


def test_a_stamp_is_some_annotations_and_a_label():
    """Everything that was there stays."""
    outcome = ApiServer(deployment()).update(asking(deployment(), duration="30m"))

    before, after = deployment(), outcome.stored
    assert set(annotations(after)) == {*annotations(before), ASK, ASK_FOR, *STAMPS}
    assert labels(after) == {LABEL: "active"}
    assert after["spec"] == before["spec"]
    assert {operation["path"].split("/")[2] for operation in outcome.patch} == {"annotations", "labels"}


def test_labels_that_are_there_are_left():
    """The section is made only where there is none."""
    obj = deployment()
    obj["metadata"]["labels"] = {"app": "web"}

    assert labels(ApiServer(obj).update(asking(obj)).stored) == {"app": "web", LABEL: "active"}


@pytest.mark.parametrize(
    "user", [ALICE, ARGOCD, {"username": "system:apiserver", "groups": []}], ids=["person", "reconciler", "system"]
)
def test_nothing_is_stamped_where_nobody_asks(user):
    """A write that asks for nothing is not patched, whoever writes."""
    obj = changed(deployment(), paused=True)

    assert ApiServer(deployment()).update(obj, user).patch == []


def test_a_write_that_is_refused_is_not_patched():
    """The patch would say that a window is open."""
    server = ApiServer(deployment(), rights=[])

    assert server.update(asking(deployment())).patch == []


def test_a_second_change_patches_no_more_than_it_adds():
    """Id, name and end stand already; the fields grow, and the seal with them."""
    server, obj = opened()

    outcome = server.update(changed(obj, paused=True), BOB)

    assert patched(outcome) == {FIELDS, WRITE, SEAL}


def patched(outcome):
    """Return the annotations and labels that a patch writes."""
    return {operation["path"].split("/")[3].replace("~1", "/") for operation in outcome.patch}


def test_a_change_of_a_listed_field_moves_the_stamp_on():
    """What it lists stays; which write was the last one is new, so that the controller can tell."""
    server, obj = opened()

    first = server.update(changed(obj, replicas=9))
    second = server.update(changed(obj, replicas=10))

    assert (first.reason, second.reason) == ("Granted", "Granted")
    assert patched(first) == patched(second) == {WRITE, SEAL}
    assert annotations(first.stored)[WRITE] != annotations(second.stored)[WRITE]


def test_a_mere_restart_in_a_window_patches_nothing():
    """What is tolerated is no part of a window."""
    server, obj = opened()
    restarted = copy.deepcopy(obj)
    restarted["spec"]["template"]["metadata"] = {"annotations": {"kubectl.kubernetes.io/restartedAt": "now"}}

    outcome = server.update(restarted)

    assert (outcome.reason, outcome.patch) == ("NoDrift", [])


def test_stamps_written_by_hand_are_written_over():
    """Whatever the user put there, with an ask that is granted it becomes what was granted."""
    obj = asking(deployment())
    obj["metadata"]["annotations"].update(dict.fromkeys(STAMPS, "mine"))

    outcome = ApiServer(deployment()).update(obj)

    stamp = read_stamp(outcome.stored, WEB, KEY)
    assert stamp is not None
    assert stamp.by == "alice"


@pytest.mark.parametrize("key", sorted(STAMPS))
@pytest.mark.parametrize("how", ["changed", "removed"])
def test_a_stamp_is_not_written_by_hand(key, how):
    """Not even by who has the right: in an open window /mutate puts it right, so that nothing changes."""
    server, obj = opened()
    touched = copy.deepcopy(obj)
    touched["metadata"]["annotations"][key] = "mine"
    touched = without(obj, key) if how == "removed" else touched

    outcome = server.update(changed(touched, paused=True))

    assert outcome.allowed
    assert annotations(outcome.stored)[ID] == annotations(obj)[ID]
    assert annotations(outcome.stored)[UNTIL] == annotations(obj)[UNTIL]
    stamp = read_stamp(outcome.stored, WEB, KEY)
    assert stamp is not None
    assert ".spec.paused" in stamp.fields


def test_the_label_is_not_removed_by_hand():
    """The webhook entry that holds reconcilers goes by it."""
    server, obj = opened()
    server.mutates = False

    assert server.update(without(obj, label=True)).reason == "StampForged"
    assert server.update(without(obj, label=True), ARGOCD).reason == "Held"


def test_without_mutate_a_reconciler_that_drops_the_ask_is_refused():
    """It would end the window without anybody's will."""
    server, obj = opened()
    server.mutates = False

    outcome = server.update(without(obj, ASK, *STAMPS, label=True), ARGOCD)

    assert (outcome.allowed, outcome.reason) == (False, "Held")


def test_the_controller_takes_away_what_is_ours_and_nothing_else():
    """It needs no right, and has none for anything else."""
    server, obj = opened()
    cleaned = without(obj, ASK, *STAMPS, label=True)

    refused = server.update(changed(cleaned, replicas=9), CONTROLLER)
    outcome = server.update(cleaned, CONTROLLER)

    assert not refused.allowed
    assert (outcome.allowed, outcome.reason, outcome.patch) == (True, "System", [])
    assert ASK not in annotations(outcome.stored)


def test_an_ask_sent_through_status_is_stamped():
    """Labels and annotations sent through /status are stored; of the spec that stands there, nothing is."""
    server = ApiServer(deployment())
    sent = asking(deployment())

    outcome = server.update(sent, subResource="status")

    stamp = read_stamp(outcome.stored, WEB, KEY)
    assert outcome.reason == "Granted"
    assert stamp is not None
    assert stamp.fields == (".spec.replicas",)


def test_an_object_that_cannot_be_scaled_lists_no_replicas():
    """An ask alone holds nothing there, until something is changed."""
    obj = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": deployment()["metadata"], "data": {"a": "1"}}
    obj["metadata"]["annotations"] = {"argocd.argoproj.io/tracking-id": "shop-prod:/ConfigMap:shop/web"}
    obj["metadata"]["managedFields"] = []

    outcome = ApiServer(obj).update(asking(obj))

    assert outcome.reason == "Granted"
    assert annotations(outcome.stored)[FIELDS] == "[]"
    assert annotations(outcome.stored)[ASK] == WHY


@settings(max_examples=30, deadline=None, database=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["alice", "bob", "argo", "mallory"]),
            st.sampled_from(["image", "replicas", "ask", "unask", "drop", "wait"]),
            st.integers(1, 9),
        ),
        max_size=6,
    )
)
def test_whatever_is_stored_in_a_window_is_sealed(steps):
    """After any sequence of writes, an object with our label carries a genuine stamp, or its window is over."""
    server = ApiServer(deployment(), rights=["alice", "bob"])
    server.update(asking(deployment()))
    users = {"alice": ALICE, "bob": BOB, "argo": ARGOCD, "mallory": {"username": "mallory", "groups": []}}
    for who, what, number in steps:
        obj = server.stored(deployment())
        old_stamp = read_stamp(obj, WEB, KEY)
        if what == "wait":
            server.clock.forward(minutes=10 * number)
            continue
        new = {
            "image": lambda o, n: _with_image(o, f"web:{n}"),
            "replicas": lambda o, n: changed(o, replicas=n),
            "ask": lambda o, n: asking(o, f"INC-{n} once more"),
            "unask": lambda o, _: without(o, ASK),
            "drop": lambda o, _: without(o, ASK, *STAMPS, label=True),
        }[what](obj, number)
        outcome = server.update(new, users[who])
        stamp = read_stamp(outcome.stored, WEB, KEY)
        if LABEL in labels(outcome.stored):
            assert stamp is not None
            assert who != "mallory" or not outcome.allowed or stamp == old_stamp
        assert apply_patch(outcome.stored, []) == outcome.stored


def _with_image(obj, image):
    new = copy.deepcopy(obj)
    new["spec"]["template"]["spec"]["containers"][0]["image"] = image
    return new

"""Break-glass as the API server sees it: /mutate stamps, its patch is applied, /validate agrees or says why not."""

import copy
from dataclasses import replace
from datetime import timedelta

import pytest

from tests.fakes import (
    ALICE,
    ARGOCD,
    BOB,
    DEPLOYER,
    KEY,
    MALLORY,
    NOON,
    WHY,
    ApiServer,
    asking,
    deployment,
    without,
)
from webhook.admission import annotations, labels
from webhook.break_glass import (
    ASK,
    ASK_FOR,
    ID,
    LABEL,
    STAMPS,
    ObjectRef,
    open_stamp,
    print_time,
    read_stamp,
    stamp_annotations,
)
from webhook.errors import ClusterUnavailable
from webhook.policy import BreakGlassPolicy, Policy
from webhook.record import new_ulid

WEB = ObjectRef(group="apps", kind="Deployment", namespace="shop", name="web")
REPLICAS, IMAGE = ".spec.replicas", '.spec.template.spec.containers[name="web"].image'


def with_image(obj, image="web:2"):
    changed = copy.deepcopy(obj)
    changed["spec"]["template"]["spec"]["containers"][0]["image"] = image
    return changed


def with_replicas(obj, replicas):
    changed = copy.deepcopy(obj)
    changed["spec"]["replicas"] = replicas
    return changed


def stamp_on(obj):
    return read_stamp(obj, WEB, KEY)


def opened(**settings):
    """Return an API server in which alice has opened a window on the Deployment, and the object as it is now."""
    server = ApiServer(deployment(), rights=["alice", "bob"], **settings)
    outcome = server.update(asking(deployment()))
    assert outcome.allowed, outcome.message
    return server, outcome.stored


def test_an_ask_alone_opens_a_window():
    """It lists the replicas field, since a scale can't be stamped when it comes."""
    server = ApiServer(deployment())

    outcome = server.update(asking(deployment()))

    stamp = stamp_on(outcome.stored)
    assert (outcome.allowed, outcome.reason) == (True, "Granted")
    assert (stamp.by, stamp.until, stamp.fields) == ("alice", NOON + timedelta(hours=1), (REPLICAS,))
    assert stamp.opened == NOON
    assert labels(outcome.stored)[LABEL] == "active"
    assert annotations(outcome.stored)[ASK] == WHY


def test_an_ask_comes_in_the_same_write_as_the_change():
    """One write is enough."""
    outcome = ApiServer(deployment()).update(asking(with_image(deployment())))

    assert (outcome.allowed, outcome.reason) == (True, "Granted")
    assert stamp_on(outcome.stored).fields == (IMAGE, REPLICAS)
    assert outcome.warnings[0].startswith("break-glass until 2026-11-23T13:00:00Z, window ")


def test_a_further_change_in_an_open_window_needs_no_ask():
    """It adds to the fields of the window, and keeps everything else."""
    server, obj = opened()
    before = stamp_on(obj)
    server.clock.forward(minutes=10)

    outcome = server.update(with_image(obj))

    assert outcome.reason == "Granted"
    after = stamp_on(outcome.stored)
    assert (after.id, after.by, after.until) == (before.id, before.by, before.until)
    assert after.fields == (REPLICAS, IMAGE)


def test_a_second_person_with_the_right_adds_to_the_same_window():
    """The window stays the one of who opened it; the record says who changed what."""
    server, obj = opened()

    outcome = server.update(with_image(obj), BOB)

    assert outcome.reason == "Granted"
    assert (stamp_on(outcome.stored).by, stamp_on(outcome.stored).id) == ("alice", stamp_on(obj).id)
    assert server.log.records[-1].user == "bob"
    assert server.log.records[-1].window == stamp_on(obj).id


@pytest.mark.parametrize("write", ["ask", "change", "the same again", "close", "scale", "delete"])
def test_nobody_does_anything_without_the_right(write):
    """An open window is no permission for others: neither to change, nor to end it."""
    server, obj = opened()
    before = server.stored(obj)

    outcome = {
        "ask": lambda: server.update(asking(obj, "INC-43 me too, please"), MALLORY),
        "change": lambda: server.update(with_image(obj), MALLORY),
        "the same again": lambda: server.update(with_replicas(obj, 9), MALLORY),
        "close": lambda: server.update(without(obj, ASK), MALLORY),
        "scale": lambda: server.scale(obj, 9, MALLORY),
        "delete": lambda: server.delete(obj, MALLORY),
    }[write]()

    assert (outcome.allowed, outcome.reason) == (False, "GrantRefused")
    assert "mallory has no right to it" in outcome.message
    assert server.stored(obj) == before


def test_an_ask_without_the_right_changes_nothing():
    """Neither the ask nor a stamp is stored."""
    server = ApiServer(deployment(), rights=[])

    outcome = server.update(asking(with_image(deployment())))

    assert (outcome.allowed, outcome.reason, outcome.patch) == (False, "GrantRefused", [])
    assert IMAGE in outcome.message
    assert server.stored(deployment()) == deployment()


@pytest.mark.parametrize(
    ("duration", "until"),
    [(None, 1), ("30m", 0.5), ("4h", 4), ("90h", 8), ("1h30m", 1.5)],
)
def test_a_window_is_as_long_as_was_asked_for_up_to_the_longest(duration, until):
    """One hour unless asked otherwise, eight at most."""
    outcome = ApiServer(deployment()).update(asking(deployment(), duration=duration))

    assert stamp_on(outcome.stored).until == NOON + timedelta(hours=until)


@pytest.mark.parametrize("duration", ["", "soon", "-1h", "0s", "1", "1d", "1h 30m", "9999999h", "1h x", "h"])
def test_a_duration_that_is_none_is_refused(duration):
    """The message says how a duration is written."""
    outcome = ApiServer(deployment()).update(asking(deployment(), duration=duration))

    assert outcome.reason == "GrantRefused"
    assert "such as 90s, 30m or 1h30m" in outcome.message


@pytest.mark.parametrize(("why", "fits"), [("INC-42 down", True), ("down", False), ("", False), ("x INC-42", False)])
def test_the_reason_has_to_match_as_a_whole(why, fits):
    """The message repeats the hint that the configuration gives."""
    policy = Policy(break_glass=BreakGlassPolicy(reason_pattern=r"INC-\d+ .+", reason_hint="a ticket number, then why"))

    outcome = ApiServer(deployment(), policy=policy).update(asking(deployment(), why))

    assert outcome.allowed is fits
    assert fits or "a ticket number, then why" in outcome.message


@pytest.mark.parametrize(("kind", "is_excluded"), [("Deployment", True), ("Deployment.apps", True), ("Secret", False)])
def test_there_is_no_break_glass_for_an_excluded_kind(kind, is_excluded):
    """Excluded as `Kind` or `Kind.group`."""
    policy = Policy(break_glass=BreakGlassPolicy(excluded_kinds=frozenset({kind})))

    outcome = ApiServer(deployment(), policy=policy).update(asking(deployment()))

    assert outcome.allowed is not is_excluded
    assert not is_excluded or "there is none for a Deployment" in outcome.message


def test_an_extension_moves_the_end_and_nothing_else():
    """Asked for again in an open window, it counts from now on."""
    server, obj = opened()
    server.clock.forward(minutes=50)

    outcome = server.update(asking(obj, duration="2h"))

    before, after = stamp_on(obj), stamp_on(outcome.stored)
    assert outcome.reason == "Granted"
    assert after == replace(before, until=NOON + timedelta(hours=2, minutes=50))


def test_extensions_end_with_the_longest_window():
    """Eight hours after its opening it is over, however often somebody asks."""
    server, obj = opened()
    for hour in range(1, 8):
        server.clock.now = NOON + timedelta(hours=hour, minutes=-1)
        obj = server.update(asking(obj, f"INC-42 still, hour {hour}", "7h")).stored

    assert stamp_on(obj).until == NOON + timedelta(hours=8)


def test_taking_the_ask_away_ends_the_window():
    """/mutate leaves the stamp alone: the controller takes it away; it is worth nothing without the ask."""
    server, obj = opened()

    outcome = server.update(without(obj, ASK))

    assert (outcome.reason, outcome.patch) == ("Granted", [])
    assert outcome.warnings == ["break-glass ends here: the object is given back to Git"]
    assert server.update(with_image(outcome.stored)).reason == "Drift"


def test_a_change_in_the_write_that_ends_the_window_is_no_stowaway():
    """What is changed as the window closes is stamped like any other change, or refused: an issue has to tell of it."""
    server, obj = opened()

    outcome = server.update(without(with_image(obj), ASK))

    assert not outcome.allowed or IMAGE in stamp_on(outcome.stored).fields


def test_a_replace_that_drops_everything_gets_it_back():
    """`kubectl replace` from a file knows neither ask nor stamp, and meant neither."""
    server, obj = opened()

    outcome = server.update(without(with_image(obj), ASK, *STAMPS, label=True))

    assert outcome.reason == "Granted"
    assert stamp_on(outcome.stored).fields == (REPLICAS, IMAGE)
    assert annotations(outcome.stored)[ASK] == WHY
    assert labels(outcome.stored)[LABEL] == "active"


@pytest.mark.parametrize("dropped", [[ASK, *STAMPS], [*STAMPS], [], [ASK]])
@pytest.mark.parametrize("label", [True, False])
def test_a_reconciler_that_drops_stamps_gets_them_back(dropped, label):
    """A PUT of the GitOps tool (`Replace=true`) drops what Git does not know; the window stays open."""
    server, obj = opened()

    outcome = server.update(without(obj, *dropped, label=label), ARGOCD)

    assert (outcome.allowed, outcome.reason) == (True, "Reconciler")
    assert outcome.stored == obj


def test_a_reconciler_does_not_undo_what_is_held():
    """It may change everything else."""
    server, obj = opened()
    obj = server.update(with_image(obj)).stored

    back = server.update(with_image(obj, "web:1"), ARGOCD)
    other = copy.deepcopy(obj)
    other["spec"]["paused"] = True
    elsewhere = server.update(other, ARGOCD)

    assert (back.allowed, back.reason) == (False, "Held")
    assert (elsewhere.allowed, elsewhere.reason) == (True, "Reconciler")
    assert server.delete(obj, ARGOCD).reason == "Held"


def test_a_reconciler_never_asks():
    """An ask that stands in Git opens nothing."""
    outcome = ApiServer(deployment(), rights=["alice", ARGOCD["username"]]).update(asking(deployment()), ARGOCD)

    assert (outcome.reason, outcome.patch) == ("Reconciler", [])
    assert stamp_on(outcome.stored) is None


def test_an_old_ask_opens_nothing():
    """An ask that Git left on the object is no ask of who writes next."""
    outcome = ApiServer(asking(deployment())).update(with_image(asking(deployment())))

    assert (outcome.allowed, outcome.reason) == (False, "Drift")


def test_a_mutating_webhook_that_is_called_again_keeps_its_stamp():
    """The API server may call /mutate once more in the same write."""
    server = ApiServer(deployment())
    server.reinvokes = True

    outcome = server.update(asking(with_image(deployment())))

    assert (outcome.reason, outcome.patch) == ("Granted", [])
    assert stamp_on(outcome.stored).fields == (IMAGE, REPLICAS)


@pytest.mark.parametrize("duration", [None, "30m"])
@pytest.mark.parametrize("skews", [(0, 0, 0), (0, 3, 6), (0, -3, 3), (3, 0, -3), (5, -5, 0)])
def test_replicas_with_other_clocks_agree(skews, duration):
    """Clocks a few seconds apart make nobody's write fail, and no stamp that was there already is written again."""
    server = ApiServer(deployment(), skews=skews)
    server.reinvokes = True

    outcome = server.update(asking(with_image(deployment()), duration=duration))

    assert (outcome.allowed, outcome.reason) == (True, "Granted")
    assert outcome.patch == []


@pytest.mark.parametrize("skews", [(0, 0, 0), (0, 3, 6), (0, -3, 3)])
def test_an_extension_is_stamped_once(skews):
    """Called again for the same write, /mutate has nothing to add."""
    server, obj = opened(skews=skews)
    server.clock.forward(minutes=10)
    server.reinvokes = True

    outcome = server.update(asking(obj, duration="2h"))

    assert outcome.reason == "Granted"
    assert outcome.patch == []


def forged(stamp, obj):
    """Return `obj` with a stamp written onto it by hand."""
    changed = copy.deepcopy(obj)
    found = stamp_annotations(stamp, WEB, KEY)
    changed["metadata"]["annotations"].update(found)
    changed["metadata"]["labels"] = {LABEL: "active"}
    return changed


@pytest.mark.parametrize("age", [0, 30, 3600])
@pytest.mark.parametrize("mutates", [True, False])
def test_a_stamp_without_an_ask_is_forged(mutates, age):
    """Even with a genuine seal: an earlier window's stamp, kept and written back."""
    server = ApiServer(deployment())
    server.mutates = mutates
    then = NOON - timedelta(seconds=age)
    stamp = open_stamp(
        id_=new_ulid(now=then.timestamp), by="alice", until=then + timedelta(hours=8), fields=[IMAGE, REPLICAS]
    )

    outcome = server.update(forged(stamp, with_image(deployment())))

    assert (outcome.allowed, outcome.reason) == (False, "StampForged")


def test_a_stamp_of_an_earlier_window_is_replaced():
    """With an ask, /mutate writes over whatever the user put there."""
    server = ApiServer(deployment())
    old = open_stamp(
        id_=new_ulid(now=(NOON - timedelta(hours=1)).timestamp), by="bob", until=NOON + timedelta(hours=7), fields=["*"]
    )

    outcome = server.update(asking(forged(old, deployment())))

    assert outcome.reason == "Granted"
    assert (stamp_on(outcome.stored).by, stamp_on(outcome.stored).opened) == ("alice", NOON)


def test_a_stamp_of_an_earlier_window_is_worth_nothing_where_nobody_mutates():
    """The mutating webhook may be down: /validate does not take an old stamp for a new one."""
    server = ApiServer(deployment())
    server.mutates = False
    old = open_stamp(
        id_=new_ulid(now=(NOON - timedelta(hours=1)).timestamp), by="alice", until=NOON + timedelta(hours=7), fields="*"
    )

    outcome = server.update(asking(forged(old, with_image(deployment()))))

    assert (outcome.allowed, outcome.reason) == (False, "StampForged")


def test_an_ask_that_nobody_stamped_is_refused():
    """Without /mutate there is no break-glass, and the message says to try again."""
    server = ApiServer(deployment())
    server.mutates = False

    outcome = server.update(asking(with_image(deployment())))

    assert (outcome.allowed, outcome.reason) == (False, "GrantRefused")
    assert "try again" in outcome.message


def test_an_expired_window_permits_nothing():
    """Its stamp and its ask still stand until the controller takes them away."""
    server, obj = opened()
    server.clock.forward(hours=1)

    assert server.update(with_image(obj)).reason == "Drift"
    assert server.scale(obj, 9).reason == "Drift"
    assert server.update(with_replicas(obj, 9), ARGOCD).reason == "Reconciler"


def test_an_expired_window_is_followed_by_a_new_one():
    """Asked for again it is another window, with an id and an end of its own."""
    server, obj = opened()
    server.clock.forward(hours=9)

    outcome = server.update(asking(obj, "INC-43 and once more"))

    assert outcome.reason == "Granted"
    assert stamp_on(outcome.stored).id != stamp_on(obj).id
    assert stamp_on(outcome.stored).until == NOON + timedelta(hours=10)


def test_a_closed_window_is_not_opened_by_putting_the_ask_back():
    """Not without the right, while the stamp still stands."""
    server, obj = opened()
    closed = server.update(without(obj, ASK)).stored

    outcome = server.update(asking(closed), MALLORY)

    assert (outcome.allowed, outcome.reason) == (False, "GrantRefused")


def test_a_scale_passes_in_an_open_window():
    """It leaves no stamp of its own; its record says what was changed."""
    server, obj = opened()

    outcome = server.scale(obj, 9)

    assert (outcome.allowed, outcome.reason) == (True, "Granted")
    assert [(d.path, d.before, d.after) for d in server.log.records[-1].drift] == [(REPLICAS, "3", "9")]


def test_a_deletion_passes_in_an_open_window():
    """The warning says that it can't be held."""
    server, obj = opened()

    outcome = server.delete(obj)

    assert (outcome.allowed, outcome.stored) == (True, None)
    assert "a deletion can't be held: GitOps will create the object again" in outcome.warnings


def test_an_object_is_created_with_an_ask():
    """The whole object is what the window holds."""
    server = ApiServer()

    outcome = server.create(asking(deployment()))

    assert (outcome.allowed, outcome.reason) == (True, "Granted")
    assert stamp_on(outcome.stored).fields == (".",)


def test_a_generated_name_can_be_created_with_an_ask():
    """At /mutate the object has no name yet: it can't be sealed there, and the refusal does not speak of forgery."""
    new = asking(deployment())
    new["metadata"]["labels"] = {
        "kustomize.toolkit.fluxcd.io/name": "apps",
        "kustomize.toolkit.fluxcd.io/namespace": "flux-system",
    }
    del new["metadata"]["annotations"]["argocd.argoproj.io/tracking-id"]
    new["metadata"]["generateName"] = f"{new['metadata'].pop('name')}-"

    outcome = ApiServer().create(new)

    assert outcome.reason != "StampForged"


def test_a_dry_run_is_answered_the_same_and_leaves_no_record():
    """`--dry-run=server` shows what would happen."""
    server = ApiServer(deployment())

    outcome = server.update(asking(with_image(deployment())), dryRun=True)

    assert (outcome.allowed, outcome.reason) == (True, "Granted")
    assert server.log.records == []


def test_a_program_in_somebody_s_window_is_refused_as_ever():
    """It asked for nothing: the reason is drift, not a right that it has not."""
    server, obj = opened()

    outcome = server.update(with_image(obj), DEPLOYER)

    assert (outcome.allowed, outcome.reason) == (False, "Drift")
    assert "Change it in Git" in outcome.message


def test_whether_somebody_has_the_right_may_not_be_known():
    """Then the write is not judged; /mutate lets it pass on to /validate."""
    server = ApiServer(deployment())
    server.cluster.down = True

    outcome = server.update(asking(deployment()))

    assert (outcome.allowed, outcome.reason, outcome.patch) == (False, "CannotJudge", [])
    assert "the API server did not answer" in outcome.message


def test_nobody_is_asked_where_nobody_asks(monkeypatch):
    """A write without an ask, outside of a window, never waits for the cluster."""
    server = ApiServer(deployment())
    server.cluster.down = True

    assert server.update(with_image(deployment())).reason == "Drift"
    with pytest.raises(ClusterUnavailable):
        server.cluster.get(None, "", "")


def test_what_the_record_says_of_the_window_is_what_the_stamp_says():
    """`until` is read from the stamp, not counted again by another clock."""
    server = ApiServer(deployment(), skews=(0, 5))

    outcome = server.update(asking(deployment()))

    assert server.log.records[-1].until == print_time(stamp_on(outcome.stored).until)
    assert server.log.records[-1].window == annotations(outcome.stored)[ID]


def test_an_ask_on_what_nobody_manages_is_answered():
    """No break-glass is needed there, and a warning says so."""
    free = deployment()
    del free["metadata"]["annotations"]["argocd.argoproj.io/tracking-id"]

    outcome = ApiServer(free).update(asking(free))

    assert outcome.allowed
    assert outcome.warnings == ["Git does not manage this object: no break-glass is needed, and none was opened"]


def test_only_for_and_why_are_an_ask():
    """A duration alone asks for nothing."""
    obj = deployment()
    obj["metadata"]["annotations"][ASK_FOR] = "1h"

    assert ApiServer(deployment()).update(obj, ALICE).reason == "Drift"

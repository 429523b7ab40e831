"""Which fields Git declares: managedFields, the last-applied annotation, and what may not be used to get round them."""

import copy
import json
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import recordings
from tests.fakes import ALICE, DEPLOYER, KEY, LAST_APPLIED, NOON, TRACKING, deployment, request_of, secret
from webhook import fields
from webhook.admission import Webhook
from webhook.decision import Reason, Verdict, decide
from webhook.declared import (
    converges,
    declared_by,
    last_applied,
    last_applied_follows,
    owned_fields,
    wiped_fields,
)
from webhook.errors import UndecodableFields
from webhook.facts import facts_of
from webhook.fields import ABSENT, Change, canonical, changes, fields_v1, print_path
from webhook.managed import ARGOCD, FLUX, ManagedBy
from webhook.policy import Policy

LAW = settings(max_examples=60, deadline=None, database=None)
BY_ARGO = (ManagedBy(tool=ARGOCD, application="shop"),)
BY_FLUX = (ManagedBy(tool=FLUX, application="shop"),)
REPLICAS = ("f:spec", "f:replicas")
IMAGE = ("f:spec", "f:image")


def entry(*paths, manager="argocd-controller", version="apps/v1", **more):
    return {"manager": manager, "operation": "Update", "apiVersion": version, "fieldsV1": fields_v1(paths), **more}


def owned(*entries, spec=None):
    return {"apiVersion": "apps/v1", "metadata": {"managedFields": list(entries)}, "spec": spec or {}}


def applied(obj, manifest):
    changed = copy.deepcopy(obj)
    text = manifest if isinstance(manifest, str) else json.dumps(manifest)
    changed["metadata"].setdefault("annotations", {})[LAST_APPLIED] = text
    return changed


def decided(old, new, user=ALICE):
    """Decide an update and return verdict, reason, and the printed drift."""
    request = request_of("UPDATE", old=old, new=new, user=user)
    decision = decide(facts_of(request, Policy(), webhook=Webhook.VALIDATE, key=KEY, now=NOON), Policy())
    return decision.verdict, decision.reason, [print_path(change.path) for change in decision.drift]


@pytest.mark.parametrize(
    ("entries", "declares"),
    [
        ([entry(REPLICAS)], True),
        ([entry(REPLICAS, manager="alice")], None),
        ([entry(REPLICAS, manager="alice"), entry(REPLICAS)], True),
        ([entry(IMAGE)], False),
        ([], None),
        ([entry(REPLICAS, version="apps/v1beta1")], None),
        ([entry(REPLICAS, subresource="status")], None),
        ([{"manager": "argocd-controller", "apiVersion": "apps/v1"}], False),
        ([entry(REPLICAS, operation="Apply"), entry(IMAGE)], True),
    ],
)
def test_what_the_tool_s_own_entries_hold_is_declared(entries, declares):
    """Both Apply and Update entries count; without one of the object's own version it is unknown: None."""
    found = declared_by(owned(*entries), BY_ARGO)

    assert (found and found.states(Change(REPLICAS, 1, 2))) == declares


@pytest.mark.parametrize("managed_fields", ["text", 7, {}, [1], [None], [{"fieldsV1": []}], [{"fieldsV1": "x"}]])
def test_managed_fields_that_are_none_are_undecodable(managed_fields):
    """An object whose managedFields can't be read can't be judged."""
    obj = {"apiVersion": "apps/v1", "metadata": {"managedFields": managed_fields}}

    with pytest.raises(UndecodableFields, match="managedFields"):
        owned_fields(obj)


@pytest.mark.parametrize("obj", [None, {}, {"metadata": {}}, {"metadata": {"managedFields": None}}])
def test_no_managed_fields_are_no_fields(obj):
    """Nothing is owned where nobody has an entry."""
    assert owned_fields(obj) == []


@pytest.mark.parametrize("text", ["", "no JSON", "[]", "7", "null", "[" * 100_000, '{"a":' * 100_000])
def test_a_last_applied_that_is_no_manifest_is_none(text):
    """The annotation is a user's, and may hold anything."""
    assert last_applied(applied(deployment(), text)) is None
    assert not last_applied_follows(deployment(), applied(deployment(), text))


MANIFEST = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": {"replicas": 3}}


@pytest.mark.parametrize(
    ("before", "after", "follows"),
    [
        (MANIFEST, MANIFEST, True),
        (MANIFEST, {**MANIFEST, "status": {}}, True),
        (MANIFEST, {**MANIFEST, "metadata": {"name": "web", "creationTimestamp": None}}, True),
        (MANIFEST, {**MANIFEST, "spec": {"replicas": 4}}, False),
        (MANIFEST, {**MANIFEST, "spec": {"replicas": True}}, False),
        (MANIFEST, {"apiVersion": "apps/v1"}, False),
        (MANIFEST, None, False),
        ("no JSON", MANIFEST, False),
        (None, {**MANIFEST, "spec": {"replicas": 4}}, False),
        (None, {**MANIFEST, "spec": {"replicas": 3, "paused": True}}, False),
        (None, None, False),
    ],
)
def test_last_applied_follows_what_is_true_already(before, after, follows):
    """Applied again by hand, the annotation may be written anew; it may not say something else."""
    old = deployment() if before is None else applied(deployment(), before)
    new = deployment() if after is None else applied(deployment(), after)

    assert last_applied_follows(old, new) is follows


def test_the_same_manifest_applied_by_hand_is_no_drift():
    """`kubectl apply` of what a server-side apply left adds last-applied, and nothing else."""
    old = deployment()
    manifest = {key: value for key, value in copy.deepcopy(old).items() if key != "status"}
    del manifest["metadata"]["managedFields"], manifest["metadata"]["uid"]

    assert decided(old, applied(old, manifest)) == (Verdict.ALLOW, Reason.NO_DRIFT, [])


@pytest.mark.parametrize(
    ("path", "after", "takes"),
    [
        (REPLICAS, 3, True),
        (REPLICAS, 4, False),
        (("f:spec", "f:paused"), ABSENT, True),
        (("f:spec", "f:paused"), None, False),
        (REPLICAS, ABSENT, False),
        (("f:metadata", "f:finalizers"), ABSENT, False),
        (("f:metadata", "f:ownerReferences"), ABSENT, False),
        (IMAGE, "web:1", False),
        (IMAGE, ABSENT, False),
    ],
)
def test_a_change_may_take_the_declared_value(path, after, takes):
    """What Git's manifest says, also where it says nothing; not what the tool still owns, nor bookkeeping."""
    obj = applied(owned(entry(IMAGE), spec={"image": "web:2"}), {**MANIFEST, "spec": {"replicas": 3, "image": "web:1"}})

    assert converges([Change(path, 9, after)], obj, declared_by(obj, BY_ARGO), set()) is takes


class TestNobodyGetsRoundLastApplied:
    """The annotation tells what Git says only as long as nobody else could write or remove it."""

    def test_taking_it_away_is_drift(self):
        """Without it, anybody could put a shorter one in its place."""
        old = recordings.argocd_deployment()
        new = copy.deepcopy(old)
        del new["metadata"]["annotations"][LAST_APPLIED]

        assert decided(old, new)[0] is Verdict.DENY

    @pytest.mark.parametrize("key", [TRACKING, LAST_APPLIED])
    def test_a_mark_never_goes_as_an_undo(self, key):
        """A manifest that says nothing of the mark gives nobody leave to take it away."""
        old = applied(deployment(), {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}})
        new = copy.deepcopy(old)
        del new["metadata"]["annotations"][key]

        assert decided(old, new)[0] is Verdict.DENY

    @pytest.mark.parametrize(
        "path", [["env"], ["env", 0, "value"], ["image"]], ids=["a list", "a value", "another value"]
    )
    def test_what_the_tool_owns_is_not_removed_because_a_shorter_manifest_omits_it(self, path):
        """Somebody adds a last-applied that says less than Git does, and then undoes what it does not say."""
        old = applied(deployment(), {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}})
        new = copy.deepcopy(old)
        inside = new["spec"]["template"]["spec"]["containers"][0]
        for key in path[:-1]:
            inside = inside[key]
        del inside[path[-1]]

        assert decided(old, new)[0] is Verdict.DENY

    def test_one_of_two_ports_that_differ_in_a_default_is_not_nothing(self):
        """A manifest leaves `protocol: TCP` out; the UDP port beside it is declared nonetheless."""
        tcp, udp = {"port": 53, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}
        old = deployment()
        old["spec"]["ports"] = [tcp, udp]
        old["metadata"]["managedFields"][0]["fieldsV1"]["f:spec"]["f:ports"] = {
            "k:" + canonical(port): {".": {}, "f:port": {}, "f:protocol": {}} for port in (tcp, udp)
        }
        old = applied(old, {"spec": {"ports": [{"port": 53}, udp]}})
        new = copy.deepcopy(old)
        new["spec"]["ports"] = [tcp]

        assert decided(old, new)[0] is Verdict.DENY

    def test_a_manifest_of_another_version_says_nothing_of_what_is_missing(self):
        """Fields have other names there: absent is not removed."""
        old = applied(deployment(), {"apiVersion": "apps/v1beta1", "kind": "Deployment", "spec": {"size": 3}})
        old["metadata"]["managedFields"] = []
        new = copy.deepcopy(old)
        del new["spec"]["replicas"]

        assert decided(old, new)[0] is Verdict.DENY

    def test_a_secret_that_git_writes_as_string_data_is_not_emptied(self):
        """The manifest has no `data`, which is no leave to remove it."""
        old = applied(secret(password="cGFzcw=="), {"apiVersion": "v1", "stringData": {"password": "pass"}})
        old["metadata"]["managedFields"] = [entry(("f:data", "f:password"), version="v1")]
        new = {**copy.deepcopy(old), "data": {}}

        assert decided(old, new)[0] is Verdict.DENY

    def test_an_addition_is_still_undone_by_hand(self):
        """What somebody added, and Git says nothing of, anybody may take away again."""
        new = applied(deployment(), {"apiVersion": "apps/v1", "kind": "Deployment", "spec": {"replicas": 3}})
        old = copy.deepcopy(new)
        old["spec"]["template"]["spec"]["containers"][0]["env"].append({"name": "DEBUG", "value": "1"})

        assert decided(old, new)[1] is Reason.CONVERGING

    def test_an_old_manifest_is_no_leave_to_roll_back(self):
        """Somebody notes today's state as last-applied; what Git says a week later is not undone by that."""
        today = deployment(image="web:1")
        noted = applied(today, {"apiVersion": "apps/v1", "spec": {"template": today["spec"]["template"]}})
        assert decided(today, noted)[0] is Verdict.ALLOW
        later = applied(deployment(image="web:2"), last_applied(noted))
        back = applied(deployment(image="web:1"), last_applied(noted))

        assert decided(later, back)[0] is Verdict.DENY

    def test_an_old_manifest_in_another_version_is_no_leave_to_roll_back(self):
        """Who writes in another served version does not see the tool's entry: what is declared is not known then."""
        later = applied(deployment(image="web:2"), {"apiVersion": "apps/v1beta2", "spec": {"replicas": 9}})
        later["apiVersion"] = "apps/v1beta2"
        back = copy.deepcopy(later)
        back["spec"]["replicas"] = 9

        assert decided(later, back)[0] is Verdict.DENY

    def test_without_an_entry_of_the_tool_nothing_is_removed_as_an_undo(self):
        """What is declared is not known field by field there."""
        old = applied(deployment(), {"apiVersion": "apps/v1", "kind": "Deployment", "spec": {"replicas": 3}})
        old["metadata"]["managedFields"] = []
        new = copy.deepcopy(old)
        del new["spec"]["template"]["spec"]["containers"][0]["env"]

        assert decided(old, new)[0] is Verdict.DENY


class TestWipes:
    """Fields taken out of the tool's entry without a change of value."""

    @pytest.mark.parametrize(
        ("after", "is_wipe"),
        [
            ([entry(REPLICAS, IMAGE)], False),
            ([entry(REPLICAS)], True),
            ([], True),
            ([entry(REPLICAS, IMAGE, manager="alice")], True),
            ([entry(REPLICAS, IMAGE, version="apps/v1beta1")], True),
            ([entry(REPLICAS, IMAGE, subresource="scale")], True),
            ([entry(REPLICAS), entry(IMAGE, operation="Apply")], False),
        ],
    )
    def test_a_field_that_goes_out_of_the_entry_is_wiped(self, after, is_wipe):
        """Renaming the entry, or its version, is a wipe as well."""
        spec = {"replicas": 3, "image": "web:1"}
        old, new = owned(entry(REPLICAS, IMAGE), spec=spec), owned(*after, spec=spec)

        assert bool(wiped_fields(old, new, BY_ARGO, ())) is is_wipe

    def test_who_changes_a_value_becomes_its_owner(self):
        """That is how field ownership works, and no wipe."""
        old = owned(entry(REPLICAS), spec={"replicas": 3})
        new = owned(entry(REPLICAS, manager="alice"), spec={"replicas": 4})

        assert wiped_fields(old, new, BY_ARGO, list(changes(old, new))) == ()

    def test_a_field_that_is_gone_is_not_wiped(self):
        """Its removal is a change of its own."""
        old = owned(entry(REPLICAS), spec={"replicas": 3})

        assert wiped_fields(old, owned(), BY_ARGO, [Change(REPLICAS, 3, ABSENT)]) == ()

    def test_the_server_folds_old_entries(self):
        """With more than ten updaters the oldest become `ancient-changes`: nobody did that on purpose."""
        spec = {"replicas": 3}
        others = [entry(manager=f"m{n}") for n in range(10)]
        old = owned(entry(REPLICAS), *others, spec=spec)
        new = owned(entry(REPLICAS, manager="ancient-changes"), *others, entry(manager="m10"), spec=spec)

        assert wiped_fields(old, new, BY_ARGO, ()) == ()

    def test_a_hand_does_not_fold_entries(self):
        """Only Update entries are folded: to call an Apply entry `ancient-changes` is to wipe it."""
        old = deployment()
        new = copy.deepcopy(old)
        new["metadata"]["managedFields"][0]["manager"] = "ancient-changes"

        assert decided(old, new, DEPLOYER)[0] is Verdict.DENY

    def test_a_folded_entry_still_protects(self):
        """Eleven writes under eleven names must not open the object to every program."""
        old = deployment()
        old["metadata"]["managedFields"][0].update(manager="ancient-changes", operation="Update")
        new = copy.deepcopy(old)
        new["spec"]["replicas"] = 99

        assert decided(old, new, DEPLOYER)[0] is Verdict.DENY


class TestPrograms:
    """What other service accounts may do."""

    def test_last_applied_declares_too(self):
        """Where the tool applies on the client's side, its manifest is there even if its entry was lost."""
        old = recordings.argocd_deployment()
        old["metadata"]["managedFields"] = []
        new = copy.deepcopy(old)
        new["spec"]["replicas"] = 99

        assert decided(old, new, DEPLOYER)[0] is Verdict.DENY

    def test_a_program_does_not_create_what_git_manages(self):
        """Creating with a valid mark adopts an object into an application, whoever does it."""
        request = request_of("CREATE", new=deployment(), user=DEPLOYER)
        facts = facts_of(request, Policy(), webhook=Webhook.VALIDATE, key=KEY, now=NOON)

        assert decide(facts, Policy()).verdict is Verdict.DENY

    @pytest.mark.parametrize("known", [True, False])
    def test_a_program_does_not_take_the_object_over(self, known):
        """An owner with `controller: true` makes an object a generated one, which nobody protects."""
        old = deployment()
        if not known:
            old["metadata"]["managedFields"] = []
        new = copy.deepcopy(old)
        new["metadata"]["ownerReferences"] = [{"kind": "Job", "name": "j", "uid": "1", "controller": True}]

        assert decided(old, new, DEPLOYER)[0] is Verdict.DENY

    @pytest.mark.parametrize("value", [" ", "https://git.example.org/shop//apps"])
    def test_no_program_puts_a_mark_on_not_even_an_invalid_one(self, value):
        """The matchConditions see only that a mark is there: its reconcilers would never be looked at again."""
        old = deployment()
        new = copy.deepcopy(old)
        new["metadata"]["annotations"]["driftgate.dev/source"] = value

        assert decided(old, new, DEPLOYER)[0] is Verdict.DENY

    def test_another_tool_s_marks_are_protected_too(self):
        """With a second tool's mark, that tool's reconcilers would be the object's."""
        old = deployment()
        new = copy.deepcopy(old)
        new["metadata"]["labels"] = {
            "kustomize.toolkit.fluxcd.io/name": "mine",
            "kustomize.toolkit.fluxcd.io/namespace": "team-a",
        }

        assert decided(old, new, DEPLOYER)[0] is Verdict.DENY

    def test_a_write_in_another_version_is_no_way_round(self):
        """Who chooses another served version must not make it unknown what Git declares."""
        old = deployment()
        old["apiVersion"] = "apps/v1beta2"
        new = copy.deepcopy(old)
        new["spec"]["replicas"] = 99

        assert decided(old, new, DEPLOYER)[1] in {Reason.DRIFT, Reason.UNKNOWN}  # section 3: unknown, for now


@pytest.mark.parametrize(
    "items", [[{"name": "a"}, {"name": "a"}, {"name": "b", "v": 1}], [{"x": 1}, {"name": "b", "v": 1}]]
)
def test_a_wipe_is_found_in_a_list_whose_items_cannot_be_told_apart(items):
    """Duplicates, or an item without its key: what is owned in the list is there all the same."""
    path = ("f:spec", "f:l", 'k:{"name":"b"}', "f:v")
    old, new = owned(entry(path), spec={"l": items}), owned(spec={"l": items})

    assert wiped_fields(old, new, BY_ARGO, ())


def calls(work):
    """Return how many functions are called while `work` is done: what it costs, without a clock."""
    count = 0

    def counting(_frame, event, _argument):
        nonlocal count
        count += event == "call"

    before = sys.getprofile()
    sys.setprofile(counting)
    try:
        work()
    finally:
        sys.setprofile(before)
    return count


def test_a_long_undo_is_found_in_one_walk():
    """Looking up each of many items in the manifest must not read its list as often: more than some are no undo."""

    def cost(count):
        items = [{"name": f"n{n}", "v": 1} for n in range(count)]
        new = applied(deployment(), {"apiVersion": "apps/v1", "spec": {"l": items}})
        new["spec"]["l"] = items
        old = copy.deepcopy(new)
        old["spec"]["l"] = [{**item, "v": 2} for item in items]
        return calls(lambda: decided(old, new))

    assert cost(400) < 6 * cost(100)


def test_a_program_s_long_change_is_compared_in_one_walk():
    """What the manifest states is looked up for each change, and its lists are not read as often."""

    def cost(count):
        items = [{"name": f"n{n}", "v": 1} for n in range(count)]
        old = applied(deployment(), {"apiVersion": "apps/v1", "spec": {"l": items}})
        old["spec"]["l"] = items
        new = copy.deepcopy(old)
        new["spec"]["l"] = [{**item, "v": 2} for item in items]
        assert decided(old, new, DEPLOYER)[1] is Reason.DRIFT
        return calls(lambda: decided(old, new, DEPLOYER))

    assert cost(400) < 6 * cost(100)


def test_a_huge_wipe_is_found_in_one_walk(monkeypatch):
    """A thousand lost fields beside a thousand changed ones are not compared each with each."""
    count = 1000
    names = [f"n{n}" for n in range(count)]
    old = owned(entry(*(("f:spec", "f:" + name) for name in names)), spec=dict.fromkeys(names, 1))
    new = owned(spec=dict.fromkeys(names, 1))
    compared = 0

    class Watched(tuple[str, ...]):
        def __getitem__(self, index):
            nonlocal compared
            compared += 1
            return super().__getitem__(index)

        __hash__ = tuple.__hash__

    touched = [Change(Watched(("f:other", f"f:{n}")), 1, 2) for n in range(count)]

    assert wiped_fields(old, new, BY_ARGO, touched)
    assert compared < 20 * count


def test_items_of_a_long_list_are_not_looked_for_one_by_one(monkeypatch):
    """Looking up each of a thousand items by its key must not read the list a thousand times."""
    count = 1000
    read = 0

    class Watched(dict[str, Any]):
        def get(self, *args):
            nonlocal read
            read += 1
            return super().get(*args)

    items = [Watched(name=f"n{n}", v=1) for n in range(count)]
    paths = [("f:spec", "f:l", "k:" + canonical({"name": f"n{n}"}), "f:v") for n in range(count)]
    old, new = owned(entry(*paths), spec={"l": items}), owned(spec={"l": items})

    assert wiped_fields(old, new, BY_ARGO, ())
    assert read < 50 * count


def test_field_sets_are_no_deeper_than_objects():
    """A deep FieldsV1 with many leaves would be as many long paths in memory."""
    inner: dict[str, Any] = {f"f:{n}": {} for n in range(10)}
    for _ in range(500):
        inner = {"f:a": inner}
    old = owned({**entry(), "fieldsV1": inner}, spec={})

    try:
        found = wiped_fields(old, owned(), BY_ARGO, ())
    except UndecodableFields:
        return
    assert found == ()


KEYS = st.sampled_from(["a", "b", "c"])
SPECS = st.dictionaries(KEYS, st.one_of(st.integers(0, 2), st.dictionaries(KEYS, st.integers(0, 2))), max_size=3)


@LAW
@given(SPECS, SPECS)
def test_an_undo_is_what_makes_the_object_git_s_again(drifted, wanted):
    """Going from anything that others own to what the manifest says is an undo, whatever it takes."""
    old = applied(owned(entry(("f:other",)), spec=drifted), {"apiVersion": "apps/v1", "spec": wanted})

    found = list(changes({"spec": drifted}, {"spec": wanted}))

    assert converges(found, old, declared_by(old, BY_ARGO), set())


@LAW
@given(SPECS, SPECS)
def test_a_controller_is_bound_by_what_it_is_told_to_be_bound_by(old_spec, new_spec):
    """A write by a program is refused exactly where it changes a declared field."""
    old, new = deployment(), deployment()
    old["spec"], new["spec"] = {**old["spec"], **old_spec}, {**new["spec"], **new_spec}
    paths = list(fields.leaves(old["metadata"]["managedFields"][0]["fieldsV1"]))
    for obj in (old, new):
        obj["metadata"]["managedFields"][0]["fieldsV1"] = fields_v1([*paths, ("f:spec", "f:a")])

    verdict, _, drift = decided(old, new, DEPLOYER)

    changed = old_spec.get("a", ABSENT) != new_spec.get("a", ABSENT)
    assert (verdict is Verdict.DENY) == changed
    assert all(path.startswith(".spec.a") for path in drift)

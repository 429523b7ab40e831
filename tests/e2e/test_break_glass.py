"""Behind broken glass: who may, what is stamped and held, what is filed and recorded, and how it ends."""

import base64
import json
import re
import shlex
import sqlite3
import subprocess
import time
from datetime import UTC, datetime

import pytest

from tests.e2e.terminal import (
    ASK,
    REASON,
    ULID,
    eventually,
    git,
    issue,
    issues_about,
    place_of,
    record,
    record_id,
    records,
    settled,
)
from webhook.demo.sample import ARGOCD, IMAGE, config_map, deployment, secret

pytestmark = pytest.mark.e2e

NEW_IMAGE = "registry.example.com/shop/checkout:1.4.1"
IMAGE_PATH = '.spec.template.spec.containers[name="app"].image'
ALL_OF_IT = {"ask", "id", "by", "until", "fields", "seal", "label"}


@pytest.fixture(scope="module")
def corner(stage):
    """A place of Argo CD's for what need not be tried with every tool."""
    return place_of(stage, ARGOCD, "glass")


def asking(manifest, *, reason=REASON, **annotations):
    """Return the manifest with an ask in it."""
    asked = {ASK: reason, **{f"{ASK}-{name}": value for name, value in annotations.items()}}
    meta = manifest["metadata"]
    return manifest | {"metadata": meta | {"annotations": meta.get("annotations", {}) | asked}}


def row(*cells):
    """Return a row of the issue's table."""
    return "| " + " | ".join(f"`{cell}`" for cell in cells) + " |"


# May I?


def test_without_the_right_it_is_refused_and_said_why(corner, stage):
    """Who has not the right learns which one it is, and from whom; the denial is on record."""
    corner.deployed(deployment("no-right", replicas=1))
    before = corner.look("deployment/no-right")

    said = corner.alice(f'annotate deployment/no-right {ASK}="{REASON}"')

    first = said.denial[0]
    assert first.startswith("Break-glass is refused for Deployment glass/no-right: alice has no right to it")
    assert '{apiGroups: ["apps"], resources: ["deployments"], verbs: ["break-glass"]}' in first
    assert "Role in glass" in first
    found = record(stage, id=record_id(said.denial))
    assert (found["verdict"], found["reason"], found["ask"]) == ("Deny", "GrantRefused", REASON)
    assert corner.look("deployment/no-right") == before


def test_without_the_right_not_in_the_same_write_either(corner):
    """Ask and change together get the same answer, with what would have drifted."""
    corner.deployed(deployment("no-right-at-once", replicas=1))
    before = corner.look("deployment/no-right-at-once")
    change = asking(deployment("no-right-at-once", replicas=1, image=NEW_IMAGE))

    said = corner.alice("apply -f -", corner.manifest(change))

    assert said.denial[0].startswith("Break-glass is refused for Deployment glass/no-right-at-once: alice has no right")
    assert f"  {IMAGE_PATH}: {IMAGE} -> {NEW_IMAGE}" in said.denial
    assert corner.look("deployment/no-right-at-once") == before


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        (f"{ASK}=oops", "the reason does not fit: at least eight characters that say why"),
        (f'{ASK}="{REASON}" {ASK}-for=soon', "break-glass-for is no duration such as 90s, 30m or 1h30m"),
        (f'{ASK}="{REASON}" {ASK}-for=0s', "break-glass-for is no duration such as 90s, 30m or 1h30m"),
        (f'{ASK}=""', "the reason does not fit"),
    ],
    ids=["a reason too short", "no duration", "no time at all", "no reason"],
)
def test_even_with_the_right_an_ask_has_to_fit(corner, asked, why):
    """A reason that says nothing and a time that is none are refused, and said so."""
    corner.deployed(config_map("asked-wrongly"))

    said = corner.bob(f"annotate configmap/asked-wrongly {asked}")

    assert said.denial[0].startswith(f"Break-glass is refused for ConfigMap glass/asked-wrongly: {why}")
    assert corner.is_free("configmap/asked-wrongly")


def test_a_window_is_no_longer_than_it_may_be(corner):
    """Who asks for a week gets eight hours."""
    corner.deployed(config_map("long"))

    assert corner.bob(f'annotate configmap/long {ASK}="{REASON}" {ASK}-for=168h')

    until = datetime.fromisoformat(corner.stamp("configmap/long")["until"])
    assert (until - datetime.now(UTC)).total_seconds() == pytest.approx(8 * 3600, abs=120)


# Asking, and what remains


def test_asked_for_first_then_scaled(place, stage):
    """The glass broken, a scale passes: stamped, filed as one issue, recorded."""
    place.deployed(deployment("scaled", replicas=1))

    asked = place.bob(f'annotate deployment/scaled {ASK}="{REASON}"')
    scaled = place.bob("scale deployment/scaled --replicas=2")

    stamp = place.stamp("deployment/scaled")
    assert f"Warning: break-glass until {stamp['until']}, window {stamp['id']}" in asked.stderr
    assert scaled, scaled.stderr
    assert stamp.keys() >= ALL_OF_IT
    assert (stamp["by"], stamp["label"], stamp["ask"]) == ("bob", "active", REASON)
    assert json.loads(stamp["fields"]) == [".spec.replicas"]
    assert re.fullmatch(ULID, stamp["id"])
    assert place.get("deployment/scaled")["spec"]["replicas"] == 2
    text = issue(stage, stamp["id"])
    assert row(".spec.replicas", "1", "2") in text
    for said in (f"Deployment {place.namespace}/scaled", place.title("scaled"), "bob", REASON, stamp["until"]):
        assert said in text
    settled(stage)
    assert issues_about(stage, stamp["id"]) == [text]
    told = [r["event"] for r in records(stage, window=stamp["id"])]
    assert sorted(told) == ["issue.filed", "review", "review", "window.opened"]


def test_asked_for_first_then_deleted(place, stage):
    """A deletion passes with a warning, is filed, and GitOps makes the object anew, free of all stamps."""
    place.deployed(config_map("deleted"))
    window = place.opened(place.bob, "configmap/deleted")

    said = place.bob("delete configmap/deleted")

    assert said, said.stderr
    assert "Warning: a deletion can't be held: GitOps will create the object again" in said.stderr
    text = issue(stage, window)
    assert "The object was **deleted**." in text
    record(stage, window=window, event="window.closed")
    place.deployed(config_map("deleted"))
    assert place.is_free("configmap/deleted")


@pytest.mark.parametrize(
    "command",
    ["apply -f -", "apply --server-side --force-conflicts -f -", "replace -f -", "patch", "edit"],
    ids=["apply", "server-side", "replace", "patch", "edit"],
)
def test_asked_for_with_the_change(place, request, command, tmp_path):
    """Ask and change in one write: what is stored carries both and the stamp."""
    name = f"at-once-{request.node.callspec.id.rpartition('-')[2]}"
    what = f"configmap/{name}"
    place.deployed(config_map(name))
    change = asking({**config_map(name), "data": {"theme": "light"}})
    if command == "patch":
        merged = {"data": change["data"], "metadata": {"annotations": {ASK: REASON}}}
        said = place.bob(f"patch {what} --type=merge -p {shlex.quote(json.dumps(merged))}")
    elif command == "edit":
        script = f's/theme: dark/theme: light/; s|^metadata:|metadata:\\n  annotations:\\n    {ASK}: "{REASON}"|'
        if place.applied.tool != "flux":
            script = f's/theme: dark/theme: light/; s|^  annotations:|  annotations:\\n    {ASK}: "{REASON}"|'
        said = place.bob.edits(what, script, tmp_path)
    else:
        said = place.bob(command, place.manifest(change))

    assert said, said.stderr
    stamp = place.stamp(what)
    assert stamp.keys() >= ALL_OF_IT
    assert (stamp["by"], stamp["ask"]) == ("bob", REASON)
    assert ".data.theme" in json.loads(stamp["fields"])
    assert place.get(what)["data"] == {"theme": "light"}
    assert "Warning: break-glass until" in said.stderr


def test_created_by_hand(corner, stage):
    """An object that Git does not know yet can be created in an emergency, and is told of."""
    said = corner.bob("create -f -", corner.manifest(asking(config_map("made"))))

    assert said, said.stderr
    stamp = corner.stamp("configmap/made")
    assert stamp.keys() >= ALL_OF_IT
    assert "The object was **created** by hand." in issue(stage, stamp["id"])
    held = corner.reconciler("delete configmap/made")
    assert held.denial[0].startswith("ConfigMap glass/made is held by break-glass")


def test_one_issue_a_window(corner, stage):
    """What follows in the same window becomes comments of the same issue."""
    what = "configmap/one-issue"
    corner.deployed(config_map("one-issue"))
    window = corner.opened(corner.bob, what)

    assert corner.bob(f"""patch {what} -p '{{"data":{{"theme":"light"}}}}'""")
    assert row(".data.theme", "dark", "light") in issue(stage, window)
    assert corner.bob(f"""patch {what} -p '{{"data":{{"theme":"blue"}}}}'""")
    assert corner.bob(f"label {what} team=blue")

    text = eventually(
        lambda: row(".metadata.labels.team", "(absent)", "blue") in (text := issue(stage, window)) and text
    )
    assert row(".data.theme", "light", "blue") in text
    assert text.count("Changed again by `bob`") == 2
    assert json.loads(corner.stamp(what)["fields"]) == [".data.theme", ".metadata.labels.team"]
    for said in records(stage, window=window, verdict="BreakGlass"):
        assert said["drift"][0]["path"].startswith(f'.metadata.annotations["{ASK}') or said["id"] in text


def test_changes_in_quick_succession_are_all_told(corner, stage):
    """However fast one scales, the issue tells from where to where."""
    corner.deployed(deployment("hasty", replicas=1))
    window = corner.opened(corner.bob, "deployment/hasty")

    for replicas in (2, 3, 2):
        assert corner.bob(f"scale deployment/hasty --replicas={replicas}")

    settled(stage)
    text = issue(stage, window)
    for before, after in [("1", "2"), ("2", "3"), ("3", "2")]:
        assert row(".spec.replicas", before, after) in text


def test_a_change_in_the_write_that_ends_the_window_is_told(corner, stage):
    """Nobody takes the ask away and changes something in the same breath, unseen."""
    what = "configmap/last-breath"
    corner.deployed(config_map("last-breath"))
    window = corner.opened(corner.bob, what)
    both = {"data": {"theme": "light"}, "metadata": {"annotations": {ASK: None}}}

    said = corner.bob(f"patch {what} --type=merge -p {shlex.quote(json.dumps(both))}")

    settled(stage)
    told = [text for text in issues_about(stage, window) if row(".data.theme", "dark", "light") in text]
    assert told or not said


def test_what_users_write_does_nothing_in_an_issue(corner, stage):
    """A reason is shown as it is, and mentions nobody."""
    corner.deployed(config_map("rude"))
    reason = "INC-7 @everyone <img src=x> `code` | [link](https://example.org)"

    window = corner.opened(corner.bob, "configmap/rude", reason)
    assert corner.bob("""patch configmap/rude -p '{"data":{"theme":"@everyone"}}'""")

    text = issue(stage, window)
    (why,) = [line for line in text.splitlines() if line.startswith("| Why |")]
    assert why.startswith("| Why | `INC-7 @everyone <img src=x> 'code' ")
    assert why.endswith(" [link](https://example.org)` |")
    assert why.count("`") == 2
    assert row(".data.theme", "dark", "@everyone") in text


# The audit log


def test_the_audit_log_tells_it_all(corner, stage):
    """`audit list` has the denial and what passed; `audit show` has all of it."""
    what = "configmap/audited"
    corner.deployed(config_map("audited"))
    patch = f"""patch {what} -p '{{"data":{{"theme":"light"}}}}'"""
    denied = record_id(corner.alice(patch).denial)
    window = corner.opened(corner.bob, what)
    assert corner.bob(patch)

    record(stage, window=window, event="issue.filed")
    table = stage.driftgate("audit", "list", "--name", "audited")

    lines = [line.split() for line in table.splitlines()]
    assert [line[1] for line in lines[1:]].count("BreakGlass") == 2
    assert any({"Deny", "Drift", "alice", denied} <= set(line) for line in lines)
    granted = record(stage, window=window, verdict="BreakGlass")
    shown = stage.driftgate("audit", "show", granted["id"])
    for said in ("BreakGlass Granted", "bob", window, ".data.theme: dark -> light", "ConfigMap glass/audited"):
        assert said in shown
    assert stage.driftgate("audit", "show", window[:4] + "0" * 22, check=False) == ""


def test_verify_finds_a_row_that_was_edited(corner, stage, tmp_path):
    """The chain is whole; in a copy in which one row was edited by hand it is not, and `verify` says where."""
    corner.deployed(config_map("chained"))
    denied = record_id(corner.alice("delete configmap/chained").denial)
    row_number = record(stage, id=denied)["sequence"]
    copy = tmp_path / "ledger.sqlite"
    with sqlite3.connect(f"file:{stage.directory}/state/ledger.sqlite?mode=ro", uri=True) as ledger:
        with sqlite3.connect(copy) as edited:
            ledger.backup(edited)
        edited.close()
    ledger.close()

    whole = stage.driftgate("audit", "verify")
    copied = stage.driftgate("audit", "verify", "--ledger", str(copy))
    with sqlite3.connect(copy) as edited:
        edit = "CAST(replace(CAST(record AS TEXT), 'alice', 'mallo') AS BLOB)"
        edited.execute(f"UPDATE records SET record = {edit} WHERE sequence = ?", (row_number,))
    edited.close()
    broken = stage.driftgate("audit", "verify", "--ledger", str(copy), check=False)

    assert "chain intact" in whole
    assert "chain intact" in copied
    assert broken.startswith("CHAIN BROKEN")
    assert f"intact up to row {row_number - 1}" in broken


# Whose window it is


def test_others_can_not_use_it_without_the_right(corner, stage):
    """A window is no hole: who has not the right can neither change anything through it, nor end or extend it."""
    what = "deployment/bobs"
    corner.deployed(deployment("bobs", replicas=1))
    corner.opened(corner.bob, what)
    before = corner.look(what)

    for command in (
        f"scale {what} --replicas=4",
        f"set image {what} app={NEW_IMAGE}",
        f"delete {what}",
        f"annotate {what} {ASK}-",
        f'annotate {what} {ASK}="INC-43 and more of it" --overwrite',
        f"annotate {what} {ASK}-for=8h",
    ):
        said = corner.alice(command)
        assert said.denial, (command, said)
        assert "alice has no right to it" in said.denial[0]
    assert not corner.robot(f"scale {what} --replicas=4")
    assert corner.look(what) == before


def test_a_second_person_adds_to_the_same_window(corner, stage):
    """Who has the right works in the window that is open: the same id, and still the one who opened it."""
    what = "configmap/shared"
    corner.deployed(config_map("shared"))
    window = corner.opened(corner.bob, what)
    assert corner.bob(f"""patch {what} -p '{{"data":{{"theme":"light"}}}}'""")
    issue(stage, window)

    said = corner.carol(f"""patch {what} -p '{{"data":{{"size":"large"}}}}'""")

    assert said, said.stderr
    stamp = corner.stamp(what)
    assert (stamp["id"], stamp["by"]) == (window, "bob")
    assert json.loads(stamp["fields"]) == [".data.theme", ".data.size"]
    eventually(lambda: "Changed again by `carol`" in issue(stage, window))
    assert record(stage, window=window, user="carol")["reason"] == "Granted"


def test_it_can_be_extended_by_who_has_the_right(corner):
    """Asking again in an open window moves its end, and nothing else."""
    what = "configmap/extended"
    corner.deployed(config_map("extended"))
    window = corner.opened(corner.bob, what)
    before = corner.stamp(what)

    said = corner.carol(f"annotate {what} {ASK}-for=3h")

    assert said, said.stderr
    after = corner.stamp(what)
    assert (after["id"], after["by"]) == (window, "bob")
    assert after["until"] > before["until"]


# What leaves nothing behind


def test_a_dry_run_leaves_nothing_behind(corner, stage):
    """`--dry-run=server` is answered the same: no stamp, no record, no issue."""
    what = "configmap/dry"
    corner.deployed(config_map("dry"))
    before = corner.look(what)
    both = {"data": {"theme": "light"}, "metadata": {"annotations": {ASK: REASON}}}

    said = corner.bob(f"patch {what} --type=merge -p {shlex.quote(json.dumps(both))} --dry-run=server -o yaml")
    assert said, said.stderr
    assert f"{ASK}-id: " in said.stdout
    assert corner.bob(f'annotate {what} {ASK}="{REASON}" --dry-run=server')
    assert corner.bob(f'annotate {what} {ASK}="{REASON}"')
    corner.bob(f"label {what} team=blue --dry-run=server")
    corner.bob(f"delete {what} --dry-run=server")

    settled(stage)
    stamp = corner.stamp(what)
    assert [r["event"] for r in records(stage, name="dry")] == ["window.opened", "review"]
    assert not issues_about(stage, "glass/dry")
    assert json.loads(stamp["fields"]) == []
    assert corner.look(what)["data"] == before["data"]


@pytest.fixture
def refusing(stage):
    """Have another webhook refuse every UPDATE of ConfigMaps in a namespace: one that can't be reached, and must be."""
    kubectl = stage.cluster.kubectl

    def start(namespace):
        hook = {
            "name": "zz.example.org",
            "clientConfig": {"url": "https://127.0.0.1:9/", "caBundle": stage.cluster.ca_data},
            "rules": [
                {"operations": ["UPDATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"]}
            ],
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
            "admissionReviewVersions": ["v1"],
            "sideEffects": "None",
        }
        configuration = {
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "ValidatingWebhookConfiguration",
            "metadata": {"name": "zz-after-us"},
            "webhooks": [hook],
        }
        kubectl("create", "configmap", "probe", "-n", namespace)
        stage.apply(configuration)
        probe = ("label", "configmap", "probe", "-n", namespace, "--overwrite")
        eventually(lambda: kubectl(*probe, f"at=t{time.monotonic_ns()}").returncode != 0)

    yield start
    kubectl("delete", "validatingwebhookconfiguration", "zz-after-us", "--ignore-not-found")


def test_what_another_webhook_refuses_files_no_issue(stage, refusing):
    """We granted it, somebody after us did not: nothing is stored, nothing filed."""
    place = place_of(stage, ARGOCD, "glass-refused")
    place.deployed(config_map("never"))
    refusing("glass-refused")
    both = {"data": {"theme": "light"}, "metadata": {"annotations": {ASK: REASON}}}

    said = place.bob(f"patch configmap/never --type=merge -p {shlex.quote(json.dumps(both))}")

    assert 'failed calling webhook "zz.example.org"' in said.stderr
    assert record(stage, name="never")["verdict"] == "BreakGlass"
    settled(stage)
    assert place.is_free("configmap/never")
    assert not issues_about(stage, "glass-refused/never")


def test_what_another_webhook_refuses_is_no_comment_either(stage, refusing):
    """A second change of a field, in an open window, refused by somebody after us: the issue does not tell it."""
    place = place_of(stage, ARGOCD, "glass-refused-later")
    place.deployed(config_map("later"))
    window = place.opened(place.bob, "configmap/later")
    assert place.bob("""patch configmap/later -p '{"data":{"theme":"light"}}'""")
    issue(stage, window)
    refusing("glass-refused-later")

    said = place.bob("""patch configmap/later -p '{"data":{"theme":"blue"}}'""")

    assert 'failed calling webhook "zz.example.org"' in said.stderr
    record(stage, window=window, drift=[{"path": ".data.theme", "before": "light", "after": "blue"}])
    settled(stage)
    assert "blue" not in issue(stage, window)


def test_what_a_quota_refuses_files_no_issue(corner, stage):
    """The quota is looked at after all webhooks: a Service that would take a node port stays as it is."""
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "front"},
        "spec": {"selector": {"app": "checkout"}, "ports": [{"port": 80}]},
    }
    corner.deployed(service)
    quota = "create quota no-node-ports --hard=services.nodeports=0"
    assert corner.admin(quota)
    eventually(lambda: corner.get("quota/no-node-ports").get("status", {}).get("hard"))
    window = corner.opened(corner.bob, "service/front")

    said = corner.bob("""patch service/front -p '{"spec":{"type":"NodePort"}}'""")

    assert "exceeded quota" in said.stderr
    assert not said.denial
    settled(stage)
    assert not issues_about(stage, window)


def test_a_conflict_leaves_nothing_behind(corner, stage):
    """Who writes over an older version is told so by the API server, before we are asked."""
    corner.deployed(config_map("stale"))
    old = corner.get("configmap/stale")
    corner.reconciler("label configmap/stale seen=yes")

    said = corner.bob("replace -f -", asking(old | {"data": {"theme": "light"}}))

    assert "the object has been modified" in said.stderr
    assert corner.is_free("configmap/stale")
    assert not records(stage, name="stale")


# The hold


def test_the_reconciler_is_held_while_the_window_is_open(place, stage):
    """Its undo is refused and told who holds what, why and until when; what nobody changed behind the glass passes."""
    what = "deployment/held"
    place.deployed(deployment("held", replicas=1))
    place.opened(place.bob, what)
    assert place.bob(f"set image {what} app={NEW_IMAGE}")
    stamp = place.stamp(what)

    undo = place.deploy(deployment("held", replicas=1))
    rehearsed = place.deploy(deployment("held", replicas=1), flags="--dry-run=server")
    delete = place.reconciler(f"delete {what}")
    scaled = place.reconciler(f"scale {what} --replicas=2")

    held = f"Deployment {place.namespace}/held is held by break-glass until {stamp['until']} (bob: {REASON})"
    assert undo.denial[:3] == [
        f"{held}; this would undo:",
        f"  {IMAGE_PATH}: {NEW_IMAGE} -> {IMAGE}",
        f"To end it earlier: kubectl annotate {what} -n {place.namespace} {ASK}-",
    ]
    assert record(stage, id=record_id(undo.denial))["reason"] == "Held"
    assert rehearsed.denial[0] == f"{held}; this would undo:"
    assert delete.denial[0] == f"{held}; this would delete it."
    assert scaled.denial[:2] == [f"{held}; this would undo:", "  .spec.replicas: 1 -> 2"]
    other = place.reconciler(f"""patch {what} --type=merge -p '{{"spec":{{"minReadySeconds":3}}}}'""")
    assert other, other.stderr
    found = place.get(what)["spec"]
    assert (found["minReadySeconds"], found["template"]["spec"]["containers"][0]["image"]) == (3, NEW_IMAGE)
    assert place.stamp(what) == stamp


def test_a_reconciler_that_replaces_does_not_end_the_window(place):
    """A PUT that knows nothing of stamps passes where it undoes nothing, and the stamps stay."""
    what = "configmap/put"
    place.deployed(config_map("put"))
    place.opened(place.bob, what)
    light = {**config_map("put"), "data": {"theme": "light"}}
    assert place.bob(f"""patch {what} -p '{{"data":{{"theme":"light"}}}}'""")
    stamp = place.stamp(what)

    passed = place.reconciler("replace -f -", place.manifest({**light, "data": {**light["data"], "size": "large"}}))
    refused = place.reconciler("replace -f -", place.manifest(config_map("put")))

    assert passed, passed.stderr
    assert "  .data.theme: light -> dark" in refused.denial
    assert place.get(what)["data"] == {"theme": "light", "size": "large"}
    assert place.stamp(what) == stamp


def test_a_replace_by_hand_does_not_end_the_window(corner):
    """`kubectl replace` with a manifest that carries no stamp keeps the window, and adds to it."""
    what = "configmap/replaced"
    corner.deployed(config_map("replaced"))
    window = corner.opened(corner.bob, what)

    said = corner.bob("replace -f -", corner.manifest({**config_map("replaced"), "data": {"theme": "light"}}))

    assert said, said.stderr
    stamp = corner.stamp(what)
    assert stamp.keys() >= ALL_OF_IT
    assert (stamp["id"], stamp["ask"]) == (window, REASON)
    assert ".data.theme" in json.loads(stamp["fields"])
    assert not corner.alice("replace -f -", corner.manifest(config_map("replaced")))
    assert corner.stamp(what) == stamp


# How it ends


def test_it_ends_when_the_ask_is_taken_away(place, stage):
    """Stamp, ask and label go, the issue is told, people are refused again, and the reconciler undoes the change."""
    what = "deployment/given-back"
    place.deployed(deployment("given-back", replicas=1))
    window = place.opened(place.bob, what)
    assert place.bob(f"set image {what} app={NEW_IMAGE}")
    issue(stage, window)

    said = place.bob(f"annotate {what} {ASK}-")

    assert said, said.stderr
    assert "Warning: break-glass ends here: the object is given back to Git" in said.stderr
    eventually(lambda: place.is_free(what))
    eventually(lambda: "Break-glass ended: the ask was removed." in issue(stage, window))
    assert record(stage, window=window, event="window.closed")["detail"] == "the ask was removed"
    assert place.get(what)["spec"]["template"]["spec"]["containers"][0]["image"] == NEW_IMAGE
    again = place.bob(f"scale {what} --replicas=3")
    assert again.denial[0].endswith("this change would drift from Git:")
    place.deployed(deployment("given-back", replicas=1))
    assert place.get(what)["spec"]["template"]["spec"]["containers"][0]["image"] == IMAGE


def test_it_ends_when_its_time_is_up(place, stage):
    """After five seconds all is as before, but for the change itself, which the reconciler may undo."""
    what = "configmap/short"
    place.deployed(config_map("short"))
    both = {"data": {"theme": "light"}, "metadata": {"annotations": {ASK: REASON, f"{ASK}-for": "5s"}}}
    assert place.bob(f"patch {what} --type=merge -p {shlex.quote(json.dumps(both))}")
    stamp = place.stamp(what)
    assert not place.deploy(config_map("short"))
    text = issue(stage, stamp["id"])
    assert "for" in stamp

    eventually(lambda: place.is_free(what))

    assert datetime.now(UTC) >= datetime.fromisoformat(stamp["until"])
    assert row(".data.theme", "dark", "light") in text
    eventually(lambda: "Break-glass ended: its time was up." in issue(stage, stamp["id"]))
    assert not place.bob(f"label {what} team=blue")
    place.deployed(config_map("short"))
    assert place.get(what)["data"] == {"theme": "dark"}


def test_anybody_may_put_it_back(place, stage):
    """What was changed behind the glass may be undone by anybody once it is over, where it is known what Git says."""
    what = "deployment/put-back"
    place.deployed(deployment("put-back", replicas=1))
    place.opened(place.bob, what)
    assert place.bob(f"scale {what} --replicas=2")
    assert place.bob(f"annotate {what} {ASK}-")
    eventually(lambda: place.is_free(what))

    said = place.alice(f"scale {what} --replicas=1")

    if "--server-side" in place.applied.flags:  # what a server-side apply declared is known by name only
        assert "  .spec.replicas: 2 -> 1" in said.denial
    else:
        assert said, said.stderr
        assert place.get(what)["spec"]["replicas"] == 1


def test_a_new_window_after_the_first(corner, stage):
    """Asked for again later, it is another window with an issue of its own."""
    what = "configmap/twice"
    corner.deployed(config_map("twice"))
    first = corner.opened(corner.bob, what)
    assert corner.bob(f"""patch {what} -p '{{"data":{{"theme":"light"}}}}'""")
    issue(stage, first)
    assert corner.bob(f"annotate {what} {ASK}-")
    eventually(lambda: corner.is_free(what))

    second = corner.opened(corner.carol, what, "INC-43 once more")
    assert corner.carol(f"""patch {what} -p '{{"data":{{"theme":"blue"}}}}'""")

    assert first != second
    assert corner.stamp(what)["by"] == "carol"
    text = issue(stage, second)
    assert first not in text
    assert row(".data.theme", "light", "blue") in text


# Secrets


def test_no_value_of_a_secret_is_anywhere(place, stage):
    """Not in the issue, the ledger, the outbox, the log, nor in what driftgate answers; neither plain nor in base64."""
    passwords = [f"{word}-of-{place.applied.tool}-{len(place.applied.flags)}" for word in ("first", "second", "third")]
    what = "secret/credentials"
    place.deployed(secret(password=passwords[0]))
    asked = place.bob(f'annotate {what} {ASK}="{REASON}"')
    window = place.stamp(what)["id"]

    patched = place.bob(f"""patch {what} -p '{{"stringData":{{"password":"{passwords[1]}"}}}}'""")
    applied = place.bob("apply -f -", place.manifest(secret(password=passwords[2])))
    refused = place.alice(f"""patch {what} -p '{{"stringData":{{"password":"{passwords[1]}"}}}}'""")
    held = place.deploy(secret(password=passwords[0]))

    assert patched, patched.stderr
    assert applied, applied.stderr
    text = eventually(lambda: "Changed again" in (text := issue(stage, window)) and text)
    assert row(".data.password", "(hidden)", "(hidden)") in text
    assert "  .data.password: (hidden) -> (hidden)" in refused.denial
    assert "  .data.password: (hidden) -> (hidden)" in held.denial
    stage.driftgate("audit", "verify")
    kept = [file.read_bytes() for file in stage.directory.rglob("*") if file.is_file()]
    blobs = ["git", "-C", str(stage.repository), "cat-file", "--batch", "--batch-all-objects"]
    kept.append(subprocess.run(blobs, capture_output=True, check=True).stdout)
    kept.append(stage.driftgate("audit", "list", "-o", "json", "--limit", "10000").encode())
    kept += ["\n".join((said.stdout, *said.denial)).encode() for said in (asked, patched, applied, refused, held)]
    kept.append(json.dumps(place.stamp(what)).encode())
    for password in passwords:
        encoded = base64.b64encode(password.encode())
        assert not [found for found in kept if password.encode() in found or encoded in found]


def test_the_index_lists_the_issues(stage):
    """The branch's own page names every issue once."""
    index = git(stage, "show", "driftgate/issues:README.md")

    assert index.count("](issues/") == len(issues_about(stage, "marker: "))

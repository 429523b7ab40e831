"""One review from end to end: what is answered, recorded and logged, and what happens when a write can't be judged."""

import copy
import json
from concurrent.futures import Future
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import recordings
from tests.fakes import (
    ARGOCD,
    KEY,
    ApiServer,
    Clock,
    FakeAuditLog,
    FakeCluster,
    asking,
    deployment,
    request_of,
    review_of,
    secret,
)
from tests.test_admission import _PLACES, _SCRAPS, REVIEW
from webhook.admission import Webhook, parse_review
from webhook.config import BreakGlassSettings, Config, FailMode, parse
from webhook.errors import ConfigError, MalformedReview
from webhook.policy import Mode, Policy
from webhook.record import as_json
from webhook.review import AdmissionReviewer, make_reviewer

VALIDATE, MUTATE = Webhook.VALIDATE, Webhook.MUTATE
SECRET_TEXT = "the text of an exception may hold parts of an object"


class Setup:
    """A reviewer, and what is around it."""

    def __init__(self, *objects, rights=("alice",), policy=None, **settings):
        self.cluster = FakeCluster(*objects, rights=rights)
        self.log = FakeAuditLog()
        self.clock = Clock()
        self.reviewer = AdmissionReviewer(
            policy or Policy(),
            seal_key=KEY,
            cluster=self.cluster,
            audit_log=self.log,
            cluster_name="prod",
            now=self.clock,
            new_id=self.clock.new_id,
            **settings,
        )

    def ask(self, request, webhook=VALIDATE):
        answer = self.reviewer.judge(webhook, request)
        return json.loads(answer.body)["response"]


def changed(**spec):
    new = deployment()
    new["spec"].update(spec or {"replicas": 5})
    return new


def denied(**fields):
    return request_of("UPDATE", old=deployment(), new=changed(), **fields)


def scaled():
    new = {"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {}, "spec": {"replicas": 9}}
    return request_of("UPDATE", old=deployment(), new=new, sub_resource="scale")


ASKED = request_of("UPDATE", old=deployment(), new=asking(deployment()))


@pytest.mark.parametrize(
    ("request_", "webhook", "recorded"),
    [
        (denied(), VALIDATE, ["Drift"]),
        (denied(dryRun=True), VALIDATE, []),
        (denied(), MUTATE, []),
        (ASKED, MUTATE, []),
        (ASKED, VALIDATE, ["GrantRefused"]),
        (scaled(), VALIDATE, ["CannotJudge"]),
        (scaled(), MUTATE, []),
        (request_of("UPDATE", old=deployment(), new=changed(), user=ARGOCD), VALIDATE, []),
        (request_of("UPDATE", old=deployment(), new=deployment()), VALIDATE, []),
    ],
    ids=["denial", "dry run", "mutate", "mutate ask", "ask", "not judged", "mutate scale", "reconciler", "no drift"],
)
def test_only_validate_records_and_never_a_dry_run(request_, webhook, recorded):
    """What is allowed in the ordinary way is not worth a record."""
    setup = Setup()

    setup.ask(request_, webhook)

    assert [record.reason for record in setup.log.records] == recorded


def test_a_record_says_who_did_what_to_what():
    """The answer's last line names it."""
    setup = Setup()

    response = setup.ask(denied())

    (record,) = setup.log.records
    assert response["status"]["message"].endswith(f"Record {record.id}")
    assert json.loads(json.dumps(as_json(record))) == {
        "id": record.id,
        "time": "2026-11-23T12:00:00.000Z",
        "cluster": "prod",
        "uid": "e911857d",
        "user": "alice",
        "groups": ["developers", "system:authenticated"],
        "operation": "UPDATE",
        "group": "apps",
        "version": "v1",
        "resource": "deployments",
        "kind": "Deployment",
        "namespace": "shop",
        "name": "web",
        "managed_by": 'Argo CD application "shop-prod"',
        "verdict": "Deny",
        "reason": "Drift",
        "drift": [{"path": ".spec.replicas", "before": "3", "after": "5"}],
    }


def test_the_answer_waits_for_its_record():
    """Whoever sends the answer gets the future of the log."""
    setup = Setup()
    future: Future[None] = Future()
    setup.log.append = lambda _: future  # type: ignore[method-assign]

    assert setup.reviewer.judge(VALIDATE, denied()).recorded is future
    assert setup.reviewer.judge(VALIDATE, request_of("UPDATE", old=deployment(), new=deployment())).recorded is None


def test_the_same_denial_again_is_counted_under_the_first_id():
    """A controller in a loop can't flood the log; the count is told when the process ends."""
    setup = Setup()

    messages = [setup.ask(denied())["status"]["message"] for _ in range(5)]
    setup.reviewer.close()

    assert len(set(messages)) == 1
    assert [(record.event, record.count) for record in setup.log.records] == [("review", 1), ("review.repeated", 4)]
    assert setup.log.closed


def test_the_count_is_told_after_ten_minutes():
    """Not only when the process ends."""
    setup = Setup()
    for _ in range(3):
        setup.ask(denied())
    setup.clock.forward(minutes=11)

    setup.ask(denied())

    assert [(record.event, record.count) for record in setup.log.records] == [
        ("review", 1),
        ("review.repeated", 2),
        ("review", 1),
    ]


def test_a_granted_write_that_is_asked_about_again_is_one_record():
    """The API server repeats a write that met a conflict."""
    server = ApiServer(deployment())
    obj = server.update(asking(deployment())).stored
    new = copy.deepcopy(obj)
    new["spec"]["replicas"] = 7

    for _ in range(3):
        server.cluster.put(obj)
        assert server.update(new).allowed

    assert [record.reason for record in server.log.records] == ["Granted", "Granted"]


@pytest.mark.parametrize("fail", FailMode)
@pytest.mark.parametrize("request_", [scaled(), ASKED], ids=["scale", "ask"])
def test_what_cannot_be_judged_is_answered_by_the_fail_mode(fail, request_):
    """One place decides; it is recorded, and said, either way."""
    setup = Setup(deployment(), fail=fail)
    setup.cluster.down = True

    response = setup.ask(request_)

    is_open = fail is FailMode.OPEN
    assert response["allowed"] is is_open
    assert [record.reason for record in setup.log.records] == ["CannotJudge"]
    assert setup.log.records[0].verdict == ("Allow" if is_open else "Deny")
    assert response["auditAnnotations"] == {"verdict": "Allow" if is_open else "Deny", "reason": "CannotJudge"}
    if is_open:
        assert response["warnings"] == ["driftgate could not judge this write and let it pass"]
    else:
        assert response["status"]["code"] == 500
        assert "the API server did not answer" in response["status"]["message"]
        assert response["status"]["message"].endswith("Try again in a moment.")


@pytest.mark.parametrize("request_", [scaled(), ASKED], ids=["scale", "ask"])
def test_in_audit_mode_nothing_is_refused_because_it_could_not_be_judged(request_):
    """Who only watches must not stand in the way when the cluster does not answer."""
    setup = Setup(policy=replace(Policy(), mode=Mode.AUDIT))
    setup.cluster.down = True

    assert setup.ask(request_)["allowed"]


@pytest.mark.parametrize("request_", [scaled(), ASKED, denied()], ids=["scale", "ask", "denial"])
def test_mutate_lets_everything_pass(request_):
    """/validate is asked the same, and refuses."""
    setup = Setup()
    setup.cluster.down = True

    response = setup.ask(request_, MUTATE)

    assert response["allowed"]
    assert "patch" not in response


class _Failing(set[str]):
    def __contains__(self, _):
        raise KeyError(SECRET_TEXT)


def test_an_internal_error_is_a_sentence(capfd):
    """Its type and place are logged; its text, which may hold parts of an object, is nowhere."""
    setup = Setup()
    setup.cluster.rights = _Failing()

    response = setup.ask(ASKED)

    logged = capfd.readouterr().out
    assert not response["allowed"]
    assert response["status"]["message"] == (
        "driftgate could not judge this write to Deployment shop/web: internal error (KeyError). Try again in a moment."
    )
    assert '"event":"review.failed"' in logged
    assert '"error":"KeyError"' in logged
    for text in (logged, response["status"]["message"], str(setup.log.records)):
        assert SECRET_TEXT not in text
        assert "Traceback" not in text


def test_one_line_is_logged_for_a_decision(capfd):
    """The same keys everywhere, and never an object's content."""
    setup = Setup()

    setup.ask(denied())

    (line,) = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert {key: line[key] for key in line if key not in {"time", "seconds"}} == {
        "event": "review.decided",
        "uid": "e911857d",
        "operation": "UPDATE",
        "resource": "deployments",
        "sub_resource": "",
        "namespace": "shop",
        "name": "web",
        "user": "alice",
        "managed_by": 'Argo CD application "shop-prod"',
        "verdict": "Deny",
        "reason": "Drift",
        "drift": [".spec.replicas"],
        "dry_run": False,
    }


def test_no_value_of_a_secret_is_logged(capfd):
    """Neither on standard output nor in the record."""
    setup = Setup()
    old, new = secret(password="aHVudGVyMg=="), secret(password="aHVudGVyMw==")

    setup.ask(request_of("UPDATE", old=old, new=new))

    told = capfd.readouterr().out + str(setup.log.records)
    assert ".data.password" in told
    assert "aHVudGVy" not in told


LARGE = changed(note="x" * 300_000)
UNRELATED = changed(paused=True)


@pytest.mark.parametrize(
    ("request_", "webhook", "slow"),
    [
        (scaled(), VALIDATE, True),
        (scaled(), MUTATE, False),
        (denied(), VALIDATE, False),
        (ASKED, VALIDATE, True),
        (ASKED, MUTATE, True),
        (request_of("UPDATE", old=asking(deployment()), new=deployment()), VALIDATE, True),
        (request_of("DELETE", old=asking(deployment())), VALIDATE, True),
        (request_of("DELETE", old=deployment()), VALIDATE, False),
        (request_of("UPDATE", old=deployment(), new=LARGE), VALIDATE, True),
        (request_of("UPDATE", old=deployment(), new=UNRELATED), VALIDATE, False),
    ],
)
def test_what_asks_the_cluster_or_is_large_is_slow(request_, webhook, slow):
    """Everything else is judged on the event loop."""
    assert Setup().reviewer.is_slow(webhook, request_) is slow


RECORDED = sorted(path.stem for path in recordings.RECORDED.glob("*.*.json"))


@pytest.mark.parametrize("name", RECORDED)
def test_what_is_not_slow_does_not_ask_the_cluster(name):
    """The event loop must not wait: over everything recorded."""
    setup = Setup()
    asked = []
    setup.cluster.get = lambda *args: asked.append(args)  # type: ignore[method-assign]
    setup.cluster.may_break_glass = lambda *args: bool(asked.append(args))  # type: ignore[method-assign,func-returns-value]
    webhook = MUTATE if name.endswith("mutate") else VALIDATE
    request = recordings.request(name)

    response = setup.ask(request, webhook)

    assert response["uid"] == request.uid
    assert not asked or setup.reviewer.is_slow(webhook, request)
    assert response["allowed"] or webhook is VALIDATE


def test_the_api_server_s_own_audit_log_carries_the_verdict():
    """Keys without a value are left out."""
    server = ApiServer(deployment())
    setup = Setup()

    found = setup.ask(denied())["auditAnnotations"]
    obj = server.update(asking(deployment())).stored
    granted = server.ask(VALIDATE, review_of("UPDATE", old=deployment(), new=obj))["auditAnnotations"]

    assert found == {
        "verdict": "Deny",
        "reason": "Drift",
        "record": setup.log.records[0].id,
        "managed-by": 'Argo CD application "shop-prod"',
    }
    assert granted["verdict"] == "BreakGlass"
    assert granted["break-glass-id"] == obj["metadata"]["annotations"]["driftgate.dev/break-glass-id"]


def test_the_audit_mode_records_what_it_lets_pass():
    """As WouldDeny, with the same fields."""
    setup = Setup(policy=replace(Policy(), mode=Mode.AUDIT))

    response = setup.ask(denied())

    assert response["allowed"]
    assert [(r.verdict, r.reason, r.drift[0].path) for r in setup.log.records] == [
        ("Allow", "WouldDeny", ".spec.replicas")
    ]


@settings(max_examples=80, deadline=None, database=None)
@given(st.sampled_from(_PLACES), _SCRAPS, st.sampled_from(list(Webhook)), st.booleans())
def test_a_reviewer_never_raises(place, scrap, webhook, nameless):
    """Whatever parses is answered: with a decision, or with the fail mode."""
    review = copy.deepcopy(REVIEW)
    inside = review
    for key in place[:-1]:
        inside = inside[key]
    inside[place[-1]] = scrap
    if nameless and isinstance(review.get("request"), dict):
        review["request"]["name"] = ""
    try:
        request = parse_review(json.dumps(review).encode())
    except MalformedReview:
        return

    response = Setup().ask(request, webhook)

    assert response["uid"] == request.uid
    assert response["allowed"] or response["status"]["message"]


@pytest.mark.parametrize("webhook", list(Webhook))
@pytest.mark.parametrize("name", ["", "web"])
def test_an_object_that_is_none_is_answered(webhook, name):
    """Also where the request has no name, and the object would have to tell it."""
    review = {**REVIEW, "request": {**REVIEW["request"], "object": "text", "name": name}}

    response = Setup().ask(parse_review(json.dumps(review).encode()), webhook)

    assert response["allowed"] is (webhook is MUTATE)


def test_a_reviewer_is_made_from_a_configuration(tmp_path):
    """Nothing is opened before the first review needs it: a worker is forked in between."""
    key = tmp_path / "key"
    key.write_bytes(KEY)
    config = parse(
        json.dumps({"state_directory": str(tmp_path / "state"), "break_glass": {"key_file": str(key)}, "fail": "open"})
    )

    reviewer = make_reviewer(config)

    assert reviewer.ready() is None
    assert not (tmp_path / "state").exists()
    reviewer.close()


def test_without_its_key_there_is_no_reviewer(tmp_path):
    """A stamp could neither be made nor read; the error says how a key is made."""
    with pytest.raises(ConfigError, match="driftgate certs --seal-key"):
        make_reviewer(Config(break_glass=BreakGlassSettings(key_file=tmp_path / "none")))


def test_the_clock_is_an_argument():
    """So that a test can hold it still."""
    setup = Setup()
    setup.clock.forward(days=1)

    setup.ask(denied())

    assert setup.log.records[0].time == "2026-11-24T12:00:00.000Z"

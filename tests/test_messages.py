"""What a refused person reads, whole; and that nothing in it can do harm, or tell a secret."""

import copy
import json
import string
import unicodedata
from dataclasses import replace
from unittest import mock

import msgspec
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.fakes import (
    ALICE,
    ARGOCD,
    KEY,
    LAST_APPLIED,
    MALLORY,
    NOON,
    ApiServer,
    asking,
    deployment,
    request_of,
    secret,
)
from webhook import review
from webhook.admission import Webhook
from webhook.break_glass import ID, ObjectRef
from webhook.decision import decide
from webhook.facts import facts_of
from webhook.fields import ABSENT, Change
from webhook.issue_text import body_of, comment_of, title_of
from webhook.messages import (
    cannot_judge,
    cut,
    kubectl_name,
    message_of,
    no_right,
    object_name,
    plain,
    print_drift,
    print_value,
)
from webhook.policy import Policy
from webhook.record import as_json

WEB = ObjectRef(group="apps", kind="Deployment", namespace="shop", name="web")

UPDATE = """\
Deployment shop/web is managed by Argo CD application "shop-prod"; this change would drift from Git:
  .spec.replicas: 3 -> 5
  .spec.template.spec.containers[name="web"].image: web:1 -> web:2
  .metadata.labels.team: (absent) -> a
Change it in Git, where Argo CD application "shop-prod" is deployed from.
In an emergency, first: kubectl annotate deployment/web -n shop driftgate.dev/break-glass="INC-... why"
"""
CREATE = """\
Deployment shop/web is managed by Argo CD application "shop-prod"; creating it by hand would drift from Git.
Change it in Git, where Argo CD application "shop-prod" is deployed from.
In an emergency: add the annotation driftgate.dev/break-glass: "INC-... why" to the object
"""
DELETE = """\
Deployment shop/web is managed by Argo CD application "shop-prod"; deleting it would drift from Git.
Change it in Git, where Argo CD application "shop-prod" is deployed from.
In an emergency, first: kubectl annotate deployment/web -n shop driftgate.dev/break-glass="INC-... why"
"""
SCALE = """\
Deployment shop/web is managed by Argo CD application "shop-prod"; this change would drift from Git:
  .spec.replicas: 3 -> 9
Change it in Git, where Argo CD application "shop-prod" is deployed from.
In an emergency, first: kubectl annotate deployment/web -n shop driftgate.dev/break-glass="INC-... why"
"""
HELD = """\
Deployment shop/web is held by break-glass until 2026-11-23T13:00:00Z (alice: INC-42 checkout is down); this would undo:
  .spec.replicas: 3 -> 7
To end it earlier: kubectl annotate deployment/web -n shop driftgate.dev/break-glass-
"""
HELD_DELETE = """\
Deployment shop/web is held by break-glass until 2026-11-23T13:00:00Z (alice: INC-42 checkout is down); \
this would delete it.
To end it earlier: kubectl annotate deployment/web -n shop driftgate.dev/break-glass-
"""
FORGED = """\
Deployment shop/web: the stamps driftgate.dev/break-glass-... are driftgate's own and can't be written or removed \
by hand.
To ask for break-glass: kubectl annotate deployment/web -n shop driftgate.dev/break-glass="INC-... why"
To end it: kubectl annotate deployment/web -n shop driftgate.dev/break-glass-
"""
REFUSED = """\
Break-glass is refused for Deployment shop/web: mallory has no right to it (an administrator gives it by a Role in \
shop: {apiGroups: ["apps"], resources: ["deployments"], verbs: ["break-glass"]}).
Without it, this change would drift from Git:
  .spec.replicas: 3 -> 5
  .spec.template.spec.containers[name="web"].image: web:1 -> web:2
  .metadata.labels.team: (absent) -> a
It is managed by Argo CD application "shop-prod"; change it in Git, where Argo CD application "shop-prod" is \
deployed from.
"""
REFUSED_REASON = """\
Break-glass is refused for Deployment shop/web: the reason does not fit: at least eight characters that say why \
(pattern \\S.{7,}).
It is managed by Argo CD application "shop-prod"; change it in Git, where Argo CD application "shop-prod" is \
deployed from.
"""
NAMESPACE = """\
Namespace shop: break-glass for a whole namespace is not possible; nothing was changed.
Annotate the object that has to change: kubectl annotate KIND/NAME -n shop driftgate.dev/break-glass="INC-... why"
"""


def edited(obj):
    new = copy.deepcopy(obj)
    new["spec"]["replicas"] = 5
    new["spec"]["template"]["spec"]["containers"][0]["image"] = "web:2"
    new["metadata"]["labels"] = {"team": "a"}
    return new


SHOP = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}


@pytest.mark.parametrize(
    ("write", "text"),
    [
        (lambda s: s.update(edited(deployment())), UPDATE),
        (lambda s: s.delete(deployment()), DELETE),
        (lambda s: s.scale(deployment(), 9), SCALE),
        (lambda s: s.create({**deployment(), "metadata": {**deployment()["metadata"]}}), CREATE),
        (lambda s: s.update(asking(edited(deployment())), MALLORY), REFUSED),
        (lambda s: s.update(asking(deployment(), "x")), REFUSED_REASON),
        (lambda s: s.update(_forged()), FORGED),
        (lambda s: _in_window(s).update(_scaled(s, 7), ARGOCD), HELD),
        (lambda s: _in_window(s).delete(deployment(), ARGOCD), HELD_DELETE),
        (lambda s: s.update(asking(SHOP)), NAMESPACE),
    ],
    ids=["update", "delete", "scale", "create", "refused", "reason", "forged", "held", "held-delete", "namespace"],
)
def test_a_denial_says_what_whose_where_and_the_way_out(write, text):
    """The first line stands alone; the last one names the record under which it is kept."""
    server = ApiServer(deployment(), SHOP)

    outcome = write(server)

    assert outcome.message == f"{text}Record {server.log.records[-1].id}"


def _forged():
    obj = deployment()
    obj["metadata"]["annotations"][ID] = "01JDC3Q7V8ZK2M5T9XW4R6YB1E"
    return obj


def _in_window(server):
    server.update(asking(deployment()))
    return server


def _scaled(server, replicas):
    obj = server.stored(deployment())
    obj["spec"]["replicas"] = replicas
    return obj


@pytest.mark.parametrize(
    ("value", "printed"),
    [
        (ABSENT, "(absent)"),
        (None, "null"),
        (True, "true"),
        (3, "3"),
        ("web:1", "web:1"),
        ("", '""'),
        (" x", '" x"'),
        ("x ", '"x "'),
        ("a\nb", "a b"),
        ([], "[]"),
        ({"b": 1, "a": [2]}, '{"a":[2],"b":1}'),
        ("x" * 100, "x" * 30 + "..." + "x" * 31),
    ],
)
def test_values_are_printed_for_people(value, printed):
    """Scalars bare, the rest as JSON, cut in the middle."""
    assert print_value(value) == printed


@pytest.mark.parametrize(
    ("before", "after"), [("3", 3), ("true", True), ("(absent)", ABSENT), ("null", None), ("[]", []), ("{}", {})]
)
def test_what_differs_is_not_printed_alike(before, after):
    """A change from 3 to "3" must not read `3 -> 3`."""
    assert print_value(before) != print_value(after)


@pytest.mark.parametrize(("longest", "text"), [(10, "abc...wxyz"), (26, string.ascii_lowercase), (5, "a...z")])
def test_a_long_text_is_cut_in_its_middle(longest, text):
    """Both ends tell more than the middle."""
    assert cut(string.ascii_lowercase, longest) == text


@settings(max_examples=50, deadline=None, database=None)
@given(st.text(max_size=300), st.integers(10, 100))
def test_plain_text_is_short_and_on_one_line(text, longest):
    """Whatever is in it."""
    found = plain(text, longest)

    assert len(found) <= longest
    assert is_defused(found)


def is_defused(text):
    """Nothing that moves a cursor, hides, or turns the direction of what follows."""
    return not [c for c in text if unicodedata.category(c) in {"Cc", "Cf", "Cs", "Zl", "Zp"}]


HOSTILE = {
    "terminal": "\x1b[2J\x1b]0;owned\x07",
    "c1": "\x9b31m\x85",
    "lines": "one\ntwo\r\nthree\u2028four\u2029five",
    "override": "\u202egnp.exe\u2066x\u2069",
    "marks": "a\u200fb\u200ec\u061cd",
    "invisible": "a\u200bb\u2060c\ufeffd\u00ade",
    "markdown": "`x` **b** [l](https://evil.example.org) | a | ![i](https://evil.example.org/i.png)",
    "html": "<script>alert(1)</script><!-- x --><img src=x>",
    "mention": "@everyone #1 !2",
    "long": "x" * (1 << 20),
    "wide": "\U0001f600" * 5000,
    "nul": "a\0b",
}


def hostile_facts(text):
    """Return the facts of a write with `text` wherever a text can stand."""
    old = deployment()
    old["metadata"]["annotations"]["driftgate.dev/source"] = text
    new = edited(old)
    new["spec"][text] = {text: text}
    new["spec"]["template"]["spec"]["containers"][0]["image"] = text
    for number in range(20):
        new["spec"][f"{text}{number}"] = text
    ask = asking(new, why=text)
    request = request_of("UPDATE", old=old, new=ask, user={"username": text, "groups": [text]})
    return request, facts_of(request, Policy(), webhook=Webhook.VALIDATE, key=KEY, now=NOON)


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_text_is_defused_and_bounded_in_a_denial(text):
    """Names, values, reasons and keys are somebody's; what comes out is plain lines, under 8 KiB in all."""
    request, facts = hostile_facts(text)
    ref = replace(facts.ref, name=text, namespace=text, kind=text)
    refusal = no_right(request, ref)

    with_ref = msgspec.structs.replace(facts, ref=ref)
    for changed in (facts, with_ref, msgspec.structs.replace(with_ref, refusal=refusal)):
        message = message_of(changed, decide(changed, Policy()), "01JDC3Q7V8ZK2M5T9XW4R6YB1E")
        lines = message.split("\n")
        assert all(is_defused(line) for line in lines)
        assert len(lines) < 20
        assert len(message.encode()) < 8 * 1024


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_text_is_defused_wherever_a_sentence_repeats_it(text):
    """Each alone, too."""
    request, facts = hostile_facts(text)
    ref = ObjectRef(group=text, kind=text, namespace=text, name=text)

    for sentence in (
        *(object_name(ref), kubectl_name(ref), no_right(request, ref), cannot_judge(request, text)),
        *(part for d in print_drift(facts.drift, ref) for part in (d.path, d.before, d.after)),
    ):
        assert is_defused(sentence)
        assert len(sentence) < 1500


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_warnings_are_short_and_plain(text):
    """The API server cuts them at 120 characters."""
    obj = ApiServer(deployment()).update(asking(deployment())).stored
    new = copy.deepcopy(obj)
    new["spec"]["note"] = text
    server = ApiServer(obj)

    outcome = server.update(new)

    assert outcome.warnings
    assert all(len(warning) < 120 and is_defused(warning) for warning in outcome.warnings)


@pytest.mark.parametrize("name", ["x; rm -rf ~", "$(reboot)", "`reboot`", "a b", "x'y", "x|y", "x&y", "x>y", "*"])
def test_a_command_to_paste_holds_no_other_command(name):
    """Names of RBAC objects may hold nearly anything, and people paste what a message tells them."""
    import shlex

    ref = ObjectRef(group="rbac.authorization.k8s.io", kind="ClusterRole", namespace="", name=name)

    command = f"kubectl annotate {kubectl_name(ref)} driftgate.dev/break-glass-"

    lexer = shlex.shlex(command, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    assert list(lexer)[2] == f"clusterrole.rbac.authorization.k8s.io/{name}"
    assert "$(" not in command or "'" in command
    assert "`" not in command or "'" in command


@pytest.mark.parametrize(
    ("ref", "name"),
    [
        (WEB, "deployment/web -n shop"),
        (ObjectRef(group="", kind="Namespace", namespace="shop", name="shop"), "namespace/shop"),
        (ObjectRef(group="argoproj.io", kind="Application", namespace="a", name="b"), "application.argoproj.io/b -n a"),
        (ObjectRef(group="", kind="Node", namespace="", name="n1"), "node/n1"),
    ],
)
def test_kubectl_understands_the_name(ref, name):
    """Kinds of other groups carry their group."""
    assert kubectl_name(ref) == name


def test_the_change_of_a_list_s_order_is_told_by_names():
    """Not by the elements of FieldsV1, which nobody reads."""
    old, new = deployment(), deployment()
    sidecar = {"name": "side", "image": "side:1"}
    old["spec"]["template"]["spec"]["containers"].append(sidecar)
    new["spec"]["template"]["spec"]["containers"].insert(0, sidecar)

    message = ApiServer(old).update(new).message

    assert ".spec.template.spec.containers" in message
    assert 'k:{\\"' not in message


SECRETS = st.text(string.ascii_letters + string.digits + "+/=", min_size=12, max_size=40)


@settings(max_examples=60, deadline=None, database=None)
@given(SECRETS, SECRETS, st.sampled_from(["change", "add", "remove", "create", "delete", "ask", "annotate", "shape"]))
def test_no_value_of_a_secret_is_ever_told(before, after, how):
    """Neither in the answer nor in a record, a log line or an issue."""
    assume(before not in after and after not in before)
    old = secret(password=before, other="eA==")
    old["metadata"]["annotations"][LAST_APPLIED] = json.dumps({"data": old["data"]})
    new = copy.deepcopy(old)
    new["data"]["password"] = after
    match how:
        case "add":
            new = {**copy.deepcopy(old), "data": {**old["data"], "added": after}}
        case "remove":
            new = {**copy.deepcopy(old), "data": {}}
        case "annotate":
            new["metadata"]["annotations"].update({"note": after, LAST_APPLIED: after})
        case "ask":
            new = asking(new)
        case "shape":
            new["data"] = [{"name": "password", "value": after}, after, {after: after}]
    server = ApiServer(*([] if how == "create" else [old]))
    logged: list[str] = []

    with mock.patch.object(review, "log", lambda event, **fields: logged.append(repr((event, fields)))):
        match how:
            case "create":
                outcome = server.create(new)
            case "delete":
                outcome = server.delete(old)
            case _:
                outcome = server.update(new)

    (record,) = server.log.records
    issue = [title_of(record), body_of(record, by="alice", why="why", until="now"), comment_of(record)]
    told = [outcome.message, *outcome.warnings, json.dumps(as_json(record)), *logged, *issue]
    assert outcome.allowed == (how == "ask")
    assert not [text for text in told if before in text or after in text]


def test_the_hidden_values_of_a_secret_are_said_to_be():
    """Whether there was one before is no secret."""
    old = secret(a="YQ==", b="Yg==")
    new = secret(b="Qg==", c="Yw==")

    message = ApiServer(old).update(new).message

    assert (
        "  .data.a: (hidden) -> (absent)\n  .data.b: (hidden) -> (hidden)\n  .data.c: (absent) -> (hidden)\n" in message
    )


def test_a_last_applied_that_changes_alone_is_told_without_its_text():
    """It repeats the whole object."""
    new = deployment()
    new["metadata"]["annotations"][LAST_APPLIED] = '{"spec":{"token":"hunter2"}}'

    message = ApiServer(deployment()).update(new).message

    assert f'.metadata.annotations["{LAST_APPLIED}"]: (absent) -> (hidden)' in message
    assert "hunter2" not in message


def test_many_fields_are_counted():
    """Ten lines are shown."""
    new = deployment()
    new["spec"].update({f"f{n:02}": n for n in range(25)})

    lines = ApiServer(deployment()).update(new).message.split("\n")

    assert lines[11] == "  and 15 more fields"
    assert lines[1] == "  .spec.f00: (absent) -> 0"


def test_a_warning_tells_when_the_window_ends():
    """And its id, by which the audit log finds it."""
    server = ApiServer(deployment())

    (warning,) = server.update(asking(edited(deployment())), ALICE).warnings

    assert warning.startswith("break-glass until 2026-11-23T13:00:00Z, window 01")
    assert warning.endswith(": bring the change to Git")


def test_no_warning_is_given_for_a_write_that_is_refused():
    """The denial says it all."""
    assert ApiServer(deployment()).update(edited(deployment())).warnings == []


def test_who_has_no_right_learns_which_rule_would_give_it():
    """Cluster-scoped objects need a ClusterRole."""
    request = request_of("UPDATE", old=deployment(), new=deployment(), user=MALLORY)

    assert no_right(request, replace(WEB, namespace="")).endswith(
        'by a ClusterRole: {apiGroups: ["apps"], resources: ["deployments"], verbs: ["break-glass"]})'
    )


def test_a_change_with_a_long_path_is_cut_and_still_told():
    """The path is cut in its middle, not left out."""
    (drift,) = print_drift([Change(("f:metadata", "f:annotations", "f:" + "k" * 300), ABSENT, "v")], WEB)

    assert len(drift.path) == 200
    assert drift.path.startswith(".metadata.annotations.kk")
    assert drift.path.endswith("kkk")

"""The webhook registration: what shape it has, and that the policy is in it."""

import base64
from dataclasses import replace

import pytest
import yaml

from webhook.config import parse, policy_of
from webhook.policy import BUILT_IN_CONTROLLERS, IGNORED_SUBRESOURCES, NODES, SYSTEM_USERS, Policy
from webhook.registration import Endpoint, registration

ENDPOINT = Endpoint(ca_bundle=b"-----BEGIN CERTIFICATE-----\n", namespace="gate", service="gate-web", port=8443)
CONFIGURED = policy_of(
    parse(
        """
        people: ["system:serviceaccount:ui:ui"]
        exempt: ["velero", "group:operators", "system:serviceaccount:backup:backup"]
        tools:
          push: {reconcilers: ["ci", "group:pipelines"]}
          flux: {impersonated: ["system:serviceaccount:team-a:deployer"]}
        """
    )
)

VALIDATE = ["people", "held", "controllers", "scale"]
PATHS = {"asks": "mutate", **dict.fromkeys(VALIDATE, "validate")}


def entries(policy=CONFIGURED, endpoint=ENDPOINT):
    """Return the webhook entries by the first part of their names."""
    return {
        entry["name"].partition(".")[0]: entry
        for configuration in registration(policy, endpoint)
        for entry in configuration["webhooks"]
    }


def conditions(entry):
    return {condition["name"]: condition["expression"] for condition in entry["matchConditions"]}


def test_there_is_a_configuration_of_either_kind():
    """Both are called driftgate, so that one command removes them."""
    found = [(c["kind"], c["metadata"]["name"], len(c["webhooks"])) for c in registration(CONFIGURED, ENDPOINT)]

    assert found == [
        ("MutatingWebhookConfiguration", "driftgate", 1),
        ("ValidatingWebhookConfiguration", "driftgate", 4),
    ]


@pytest.mark.parametrize(
    ("name", "failure_policy", "operations", "resources"),
    [
        ("people", "Fail", ["CREATE", "UPDATE", "DELETE"], ["*/*"]),
        ("held", "Fail", ["CREATE", "UPDATE", "DELETE"], ["*/*"]),
        ("controllers", "Ignore", ["CREATE", "UPDATE", "DELETE"], ["*/*"]),
        ("scale", "Ignore", ["UPDATE"], ["*/scale"]),
        ("asks", "Ignore", ["CREATE", "UPDATE"], ["*", "*/status"]),
    ],
)
def test_each_entry_sees_what_it_has_to(name, failure_policy, operations, resources):
    """People's writes fail while we are down; a program's never do."""
    entry = entries()[name]

    (rule,) = entry["rules"]
    assert entry["failurePolicy"] == failure_policy
    assert (rule["operations"], rule["resources"]) == (operations, resources)
    assert (rule["apiGroups"], rule["apiVersions"], rule["scope"]) == (["*"], ["*"], "*")


@pytest.mark.parametrize("name", PATHS)
def test_all_entries_are_alike_otherwise(name):
    """No side effects on a dry run, five seconds, all versions; our own namespace can always be repaired."""
    entry = entries()[name]

    assert entry["name"] == f"{name}.driftgate.dev"
    assert entry["sideEffects"] == "NoneOnDryRun"
    assert entry["timeoutSeconds"] == 5
    assert entry["matchPolicy"] == "Equivalent"
    assert entry["admissionReviewVersions"] == ["v1"]
    assert entry["namespaceSelector"] == {
        "matchExpressions": [{"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": ["gate"]}]
    }
    assert entry["clientConfig"] == {
        "caBundle": base64.b64encode(ENDPOINT.ca_bundle).decode(),
        "service": {"namespace": "gate", "name": "gate-web", "path": f"/{PATHS[name]}", "port": 8443},
    }
    assert 0 < len(entry["matchConditions"]) <= 64
    assert len(conditions(entry)) == len(entry["matchConditions"])


def test_a_webhook_outside_of_the_cluster_has_a_url():
    """Then there is no Service."""
    found = entries(endpoint=replace(ENDPOINT, url="https://192.0.2.7:8443/"))

    assert found["asks"]["clientConfig"]["url"] == "https://192.0.2.7:8443/mutate"
    assert found["people"]["clientConfig"]["url"] == "https://192.0.2.7:8443/validate"
    assert "service" not in found["people"]["clientConfig"]


def test_only_the_hold_selects_by_label():
    """Everybody else's writes are judged with or without a window."""
    found = {name for name, entry in entries().items() if "objectSelector" in entry}

    assert found == {"held"}
    assert entries()["held"]["objectSelector"] == {"matchLabels": {"driftgate.dev/break-glass": "active"}}


def test_the_mutating_webhook_is_called_again_where_another_one_changed_the_object():
    """A stamp has to list what other webhooks add."""
    assert entries()["asks"]["reinvocationPolicy"] == "IfNeeded"


@pytest.mark.parametrize("name", ["people", "held", "controllers"])
def test_every_reconciler_is_known(name):
    """Those that a tool settles, and those that the configuration adds."""
    text = "\n".join(conditions(entries()[name]).values())

    for tool in CONFIGURED.tools:
        for identity in tool.reconcilers:
            assert f'"{identity.name.removeprefix("group:")}"' in text
    assert '"pipelines" in request.userInfo.groups' in text


@pytest.mark.parametrize("name", VALIDATE)
def test_the_exempt_never_reach_us(name):
    """A service account only with its own token."""
    expression = conditions(entries()[name])["not-exempt"]

    assert '(request.userInfo.username == "velero")' in expression
    assert '"operators" in request.userInfo.groups' in expression
    assert (
        '(request.userInfo.username == "system:serviceaccount:backup:backup" && '
        '(has(request.userInfo.uid) && request.userInfo.uid != ""))'
    ) in expression


def test_who_is_impersonated_by_its_tool_needs_no_uid():
    """Flux's tenants have none."""
    text = "\n".join(conditions(entries()["people"]).values())

    assert '(request.userInfo.username == "system:serviceaccount:team-a:deployer")' in text


@pytest.mark.parametrize("name", ["people", "controllers"])
def test_people_write_through_web_interfaces(name):
    """Their service accounts are no programs."""
    text = "\n".join(conditions(entries()[name]).values())

    assert '!(request.userInfo.username in ["system:serviceaccount:ui:ui"])' in text


@pytest.mark.parametrize("name", ["people", "controllers", "scale"])
def test_the_cluster_itself_never_reaches_us(name):
    """Nodes, the control plane, and the built-in controllers by name."""
    text = "\n".join(conditions(entries()[name]).values())

    assert all(f'"{user}"' in text for user in SYSTEM_USERS | BUILT_IN_CONTROLLERS)
    assert f'"{NODES}" in request.userInfo.groups' in text


@pytest.mark.parametrize("name", ["people", "held", "controllers"])
def test_what_is_no_configuration_never_reaches_us(name):
    """Subresources by name, leases, events; scales have an entry of their own."""
    expression = conditions(entries()[name])["is-configuration"]

    assert all(f'"{sub_resource}"' in expression for sub_resource in IGNORED_SUBRESOURCES | {"scale"})
    assert 'request.resource.group == "coordination.k8s.io" && request.resource.resource == "leases"' in expression


@pytest.mark.parametrize("mark", ["argocd.argoproj.io/tracking-id", "kustomize.toolkit.fluxcd.io/name"])
def test_every_mark_is_looked_for(mark):
    """On the old object as well as on the new."""
    expression = conditions(entries()["people"])["is-managed"]

    assert f'"{mark}" in o.metadata' in expression
    assert expression.startswith("[object, oldObject].exists(o, o != null")


def test_a_tool_that_is_switched_off_is_not_looked_for():
    """Neither its marks nor its reconcilers."""
    text = str(registration(policy_of(parse("tools: {flux: {enabled: false}}")), ENDPOINT))

    assert "fluxcd.io" not in text
    assert "kustomize-controller" not in text


def test_without_any_tool_nothing_is_managed():
    """And the expressions are still expressions."""
    found = entries(replace(Policy(), tools=()))

    assert all(is_balanced(text) for entry in found.values() for text in conditions(entry).values())
    assert "false" in conditions(found["people"])["is-managed"]


def is_balanced(expression):
    """Tell whether all brackets and quotes are closed."""
    closing, quoted, escaped = [], False, False
    for letter in expression:
        if quoted:
            quoted, escaped = escaped or letter != '"', letter == "\\" and not escaped
        elif letter == '"':
            quoted = True
        elif letter in "([{":
            closing.append({"(": ")", "[": "]", "{": "}"}[letter])
        elif letter in ")]}" and (not closing or closing.pop() != letter):
            return False
    return not closing and not quoted


@pytest.mark.parametrize("name", ["o'neil", 'a"b', "back\\slash", "line\nbreak", "ü", "\U0001f600", "a) || (true"])
def test_an_odd_name_stays_a_name(name):
    """Quotes and brackets in an identity can't end its string; CEL reads UTF-8, and no surrogates."""
    policy = policy_of(parse(yaml.safe_dump({"exempt": [name], "people": [name]})))

    texts = [text for entry in entries(policy).values() for text in conditions(entry).values()]

    assert all(is_balanced(text) for text in texts)
    assert not [text for text in texts if "\\ud8" in text or "\n" in text]


def test_it_is_yaml_that_the_api_server_takes():
    """What is printed is what was meant."""
    made = registration(CONFIGURED, ENDPOINT)

    printed = yaml.safe_dump_all(made, sort_keys=False, width=4096)

    assert list(yaml.safe_load_all(printed)) == made
    assert "&id" not in printed
    assert len(printed) < 256 * 1024

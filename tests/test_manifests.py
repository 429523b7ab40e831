"""The manifests against the code: ports, paths, names and rights that both have to state."""

import re
import shutil
import subprocess
from pathlib import Path, PurePosixPath

import pytest
import yaml

from webhook import __version__, registration
from webhook.app import create_app
from webhook.cli import SUBCOMMANDS
from webhook.config import Config, parse, policy_of
from webhook.server import LAST_ANSWERS

from .fakes_server import FakeReviewer

MANIFESTS = Path(__file__).parents[1] / "manifests"
BASE = MANIFESTS / "base"
KUSTOMIZATION = yaml.safe_load((BASE / "kustomization.yaml").read_text())
FILES = sorted(file for file in BASE.glob("*.yaml") if file.name != "kustomization.yaml")
OBJECTS = {file.name: list(yaml.safe_load_all(file.read_text())) for file in FILES}
NAMESPACED = {
    "ConfigMap",
    "NetworkPolicy",
    "PodDisruptionBudget",
    "ResourceQuota",
    "Role",
    "RoleBinding",
    "Service",
    "ServiceAccount",
    "StatefulSet",
}


def of_kind(kind):
    return [manifest for [manifest] in OBJECTS.values() if manifest["kind"] == kind]


def only(kind):
    [manifest] = of_kind(kind)
    return manifest


def pod():
    return only("StatefulSet")["spec"]["template"]["spec"]


def container(name):
    [found] = [container for container in pod()["containers"] if container["name"] == name]
    return found


def mounts(name):
    """The mount paths of a container, by volume."""
    return {mount["name"]: PurePosixPath(mount["mountPath"]) for mount in container(name)["volumeMounts"]}


def volume(name):
    [found] = [volume for volume in pod()["volumes"] if volume["name"] == name]
    return found


def rules():
    return [
        (role["metadata"]["name"], rule)
        for kind in ("ClusterRole", "Role")
        for role in of_kind(kind)
        for rule in role["rules"]
    ]


@pytest.fixture(scope="module")
def config():
    [text] = only("ConfigMap")["data"].values()
    return parse(text)


@pytest.mark.parametrize("name", OBJECTS)
def test_a_file_holds_one_object_and_is_listed(name):
    """Nobody edits a file that is never applied."""
    [manifest] = OBJECTS[name]

    assert {"apiVersion", "kind", "metadata"} <= manifest.keys()
    assert name in KUSTOMIZATION["resources"]


def test_what_is_listed_is_there():
    """A folder that is listed is a kustomization of its own."""
    for name in KUSTOMIZATION["resources"]:
        place = BASE / name
        assert place.is_file() or (place / "kustomization.yaml").is_file(), name
    assert len(set(KUSTOMIZATION["resources"])) == len(KUSTOMIZATION["resources"])


def test_everything_is_in_our_namespace(config):
    """The one that the registration leaves out, so that driftgate can always be repaired."""
    namespace = registration.Endpoint(ca_bundle=b"").namespace

    assert only("Namespace")["metadata"]["name"] == namespace
    for [manifest] in OBJECTS.values():
        expected = namespace if manifest["kind"] in NAMESPACED else None
        assert manifest["metadata"].get("namespace") == expected, manifest["metadata"]["name"]


def test_the_image_is_the_packages_version():
    """One tag for all containers, set in one place."""
    assert KUSTOMIZATION["images"] == [{"name": "driftgate", "newTag": __version__}]
    assert {found["image"] for found in pod()["containers"]} == {"driftgate"}


@pytest.mark.parametrize("name", ["webhook", "controller"])
def test_a_container_runs_the_subcommand_of_its_name_with_the_mounted_configuration(name):
    """The file that is passed is a key of the ConfigMap, below the path where that is mounted."""
    command, option, file = container(name)["args"]
    path = PurePosixPath(file)

    assert command == name
    assert name in SUBCOMMANDS
    assert option == "--config"
    assert path.parent == mounts(name)["config"]
    assert volume("config")["configMap"]["name"] == only("ConfigMap")["metadata"]["name"]
    assert list(only("ConfigMap")["data"]) == [path.name]
    assert all(variable["value"] == file for variable in container(name).get("env", []))


@pytest.mark.parametrize("name", ["webhook", "controller"])
def test_a_container_finds_state_and_seal_where_the_configuration_says(name, config):
    """Both see the same volume of state, and the same key."""
    assert mounts(name)["state"] == PurePosixPath(config.state_directory)
    assert mounts(name)["seal"] == PurePosixPath(config.break_glass.key_file.parent)
    for place in (config.outbox, config.ledger, config.issues):
        assert place.is_relative_to(config.state_directory)


def test_the_webhook_finds_its_certificates(config):
    """The folder in the configuration is where the Secret is mounted; the controller does without the key."""
    assert mounts("webhook")["certificates"] == PurePosixPath(config.server.certificates)
    assert "certificates" not in mounts("controller")


def test_the_secrets_are_the_ones_that_are_asked_for():
    """The kustomization tells people to make exactly the Secrets that the pod waits for."""
    told = re.findall(r"^#   (driftgate-[a-z]+) ", (BASE / "kustomization.yaml").read_text(), re.MULTILINE)

    assert [volume(name)["secret"]["secretName"] for name in ("certificates", "seal")] == told


def test_the_configuration_says_what_the_code_does_by_default(config):
    """What works in the cluster works without a file as well, so a command run by hand in the pod agrees."""
    assert config == Config()


def test_the_pods_account_is_the_controllers_identity(config):
    """Otherwise the gate would refuse the controller's own writes; every binding is for this account."""
    account = only("ServiceAccount")["metadata"]
    bound = [
        subject
        for kind in ("ClusterRoleBinding", "RoleBinding")
        for one in of_kind(kind)
        for subject in one["subjects"]
    ]

    assert config.controller_identity == f"system:serviceaccount:{account['namespace']}:{account['name']}"
    assert pod()["serviceAccountName"] == account["name"]
    assert pod()["automountServiceAccountToken"] is True
    assert {(one["kind"], one["name"], one["namespace"]) for one in bound} == {
        ("ServiceAccount", account["name"], account["namespace"])
    }


def test_every_role_is_bound_once():
    """A role that nothing is bound to gives nothing."""
    roles = [(one["kind"], one["metadata"]["name"]) for kind in ("ClusterRole", "Role") for one in of_kind(kind)]
    bound = [
        (one["roleRef"]["kind"], one["roleRef"]["name"])
        for kind in ("ClusterRoleBinding", "RoleBinding")
        for one in of_kind(kind)
    ]

    assert sorted(roles) == sorted(bound)


def test_only_one_role_is_broad_and_none_creates_or_deletes_objects():
    """What a team narrows stands alone. Questions, events and leases are all that is ever created."""
    created = {resource for _, rule in rules() if "create" in rule["verbs"] for resource in rule["resources"]}
    verbs = {verb for _, rule in rules() for verb in rule["verbs"]}

    assert [name for name, rule in rules() if "*" in rule["apiGroups"] + rule["resources"] + rule["verbs"]] == [
        "driftgate-controller-objects"
    ]
    assert created == {"subjectaccessreviews", "events", "leases"}
    assert verbs == {"create", "get", "list", "patch", "update", "watch"}


def test_the_controller_may_patch_our_own_registration():
    """By name, and no other."""
    [rule] = [rule for _, rule in rules() if "admissionregistration.k8s.io" in rule["apiGroups"]]

    assert rule["resourceNames"] == [registration.NAME]
    assert set(rule["resources"]) == {
        f"{kind.lower()}s" for kind in ("ValidatingWebhookConfiguration", "MutatingWebhookConfiguration")
    }


def test_the_service_leads_from_the_registration_to_the_port(config):
    """Registration, Service, container, policy and configuration name one way."""
    endpoint = registration.Endpoint(ca_bundle=b"")
    service = only("Service")
    [port] = service["spec"]["ports"]
    [open_port] = container("webhook")["ports"]
    [ingress] = only("NetworkPolicy")["spec"]["ingress"]

    assert (service["metadata"]["namespace"], service["metadata"]["name"]) == (endpoint.namespace, endpoint.service)
    assert port["port"] == endpoint.port
    assert port["targetPort"] == open_port["name"]
    assert open_port["containerPort"] == config.server.port
    assert [entry["port"] for entry in ingress["ports"]] == [config.server.port]


@pytest.mark.parametrize(("probe", "path"), [("readinessProbe", "/readyz"), ("livenessProbe", "/healthz")])
def test_a_probe_asks_for_a_path_that_answers(probe, path):
    """Over HTTPS, at the webhook's port."""
    asked = container("webhook")[probe]["httpGet"]
    client = create_app(FakeReviewer()).test_client()

    assert asked == {"path": path, "port": container("webhook")["ports"][0]["name"], "scheme": "HTTPS"}
    assert client.get(path).status_code == 200


def test_the_grace_period_is_longer_than_leaving_takes(config):
    """preStop, then gunicorn's own time to drain and the last answers, then some."""
    sleep = container("webhook")["lifecycle"]["preStop"]["sleep"]["seconds"]
    drain = config.server.drain.total_seconds() + LAST_ANSWERS + 7

    assert sleep + drain < pod()["terminationGracePeriodSeconds"]


def test_every_selector_finds_the_pod():
    """The label is on the template itself, not added by kustomize."""
    stateful_set = only("StatefulSet")["spec"]
    label = stateful_set["template"]["metadata"]["labels"]

    assert stateful_set["selector"]["matchLabels"] == label
    assert only("Service")["spec"]["selector"] == label
    assert only("PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == label
    assert only("NetworkPolicy")["spec"]["podSelector"]["matchLabels"] == label
    assert stateful_set["serviceName"] == only("Service")["metadata"]["name"]


def test_there_is_one_pod_while_the_outbox_is_a_folder():
    """Its budget lets it go, or no node could be drained; its volume is its own."""
    stateful_set = only("StatefulSet")["spec"]
    [claim] = stateful_set["volumeClaimTemplates"]

    assert stateful_set["replicas"] == 1
    assert only("PodDisruptionBudget")["spec"]["maxUnavailable"] == 1
    assert claim["metadata"]["name"] == "state"
    assert claim["spec"]["accessModes"] == ["ReadWriteOnce"]


@pytest.mark.parametrize("name", ["webhook", "controller"])
def test_a_container_has_no_privileges(name):
    """Pod Security "restricted", which the namespace enforces, and a root file system that nobody writes."""
    labels = only("Namespace")["metadata"]["labels"]
    context = pod()["securityContext"]

    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    assert context["runAsNonRoot"] is True
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container(name)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert "memory" in container(name)["resources"]["limits"]
    assert "cpu" not in container(name)["resources"]["limits"]
    assert volume(f"{name}-tmp")["emptyDir"]["medium"] == "Memory"
    assert mounts(name)[f"{name}-tmp"] == PurePosixPath("/tmp")


def test_the_pods_priority_is_allowed_where_it_takes_a_quota():
    """Some providers let a pod be critical only where a quota for that class is."""
    [scope] = only("ResourceQuota")["spec"]["scopeSelector"]["matchExpressions"]

    assert scope["values"] == [pod()["priorityClassName"]]


@pytest.mark.skipif(not shutil.which("kubectl"), reason="no kubectl on PATH")
def test_kustomize_builds_it():
    """All objects come out, with the image's tag set and the labels on every one."""
    done = subprocess.run(["kubectl", "kustomize", str(BASE)], capture_output=True, text=True, check=True, timeout=60)
    built = list(yaml.safe_load_all(done.stdout))

    assert {one["kind"] for one in built} >= {manifest["kind"] for [manifest] in OBJECTS.values()}
    assert all(one["metadata"]["labels"]["app.kubernetes.io/name"] == "driftgate" for one in built)
    assert done.stdout.count(f"image: driftgate:{__version__}\n") == 2


def printed_registration():
    """What `driftgate manifests` prints for the shipped configuration, without the CA that an installation adds."""
    policy = policy_of(parse(only("ConfigMap")["data"]["config.yaml"]))
    manifests = registration.registration(policy, registration.Endpoint(ca_bundle=b""))
    for manifest in manifests:
        for entry in manifest["webhooks"]:
            del entry["clientConfig"]["caBundle"]
    return manifests


def test_the_shipped_registration_is_what_the_command_prints():
    """The checked-in webhook configurations can't fall behind the rules they are generated from."""
    folder = MANIFESTS / "registration"
    listed = yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]

    assert [yaml.safe_load((folder / name).read_text()) for name in listed] == printed_registration()

"""The control plane itself: who its users are, what they may do, what runs on it, and that nothing stays behind."""

import json
import ssl
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import webhook
from webhook.demo.control_plane.authority import Authority, encoded

pytestmark = pytest.mark.e2e

ROOT = Path(webhook.__file__).parents[1]
OWNER = """
import sys, time
from pathlib import Path
from webhook.demo.control_plane import ControlPlane, find_binaries
ControlPlane(find_binaries(), directory=Path(sys.argv[1])).start()
print("up", flush=True)
time.sleep(600)
"""


def eventually(holds):
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline, "it did not happen within 20 s"
        time.sleep(0.1)


def who_am_i(control_plane, config):
    answer = control_plane.kubectl("auth", "whoami", "-o", "json", config=config, check=True)
    return json.loads(answer.stdout)["status"]["userInfo"]


def running_in(directory, *, besides):
    """Return the processes that were told of this directory, but for one."""
    processes = subprocess.run(["ps", "-axww", "-o", "pid=,args="], capture_output=True, text=True, check=True).stdout
    return [line for line in processes.splitlines() if str(directory) in line and int(line.split()[0]) != besides]


@contextmanager
def denying_webhook(tmp_path, host):
    """Serve a webhook on loopback that denies everything, telling who asked; give its port and its CA."""

    class Deny(BaseHTTPRequestHandler):
        def do_POST(self):
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["request"]
            answer = {"uid": request["uid"], "allowed": False, "status": {"message": request["userInfo"]["username"]}}
            body = json.dumps({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": answer})
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_):
            pass

    authority = Authority.create(now=datetime.now(UTC))
    pair = authority.for_server([host])
    (tmp_path / "pair.pem").write_bytes(pair.certificate + pair.key)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(tmp_path / "pair.pem")
    with ThreadingHTTPServer(("127.0.0.1", 0), Deny) as server:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        yield server.server_port, encoded(authority.certificate)
        server.shutdown()
        serving.join()


def registration(namespace, port, ca_bundle):
    """Return a Service that leads to loopback, and a webhook behind it that judges pods of one namespace."""
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "hook", "namespace": namespace},
        "spec": {"type": "ExternalName", "externalName": "localhost"},
    }
    hook = {
        "name": "pods.hook.example.org",
        "clientConfig": {"service": {"name": "hook", "namespace": namespace, "port": port}, "caBundle": ca_bundle},
        "rules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}],
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
        "admissionReviewVersions": ["v1"],
        "sideEffects": "None",
    }
    configuration = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": namespace},
        "webhooks": [hook],
    }
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": [service, configuration]})


def test_a_user_has_the_groups_of_the_certificate(control_plane):
    """A person is a client certificate, without a uid."""
    alice = who_am_i(control_plane, control_plane.kubeconfig("alice", ["developers", "on-call"]))

    assert alice["username"] == "alice"
    assert {"developers", "on-call"} <= set(alice["groups"])
    assert "uid" not in alice


def test_a_service_account_has_a_uid(control_plane):
    """A service account writes with a token of its own, which tells it from somebody who impersonates it."""
    robot = who_am_i(control_plane, control_plane.service_account("cp-robots", "robot"))

    assert robot["username"] == "system:serviceaccount:cp-robots:robot"
    assert robot["uid"]


def test_rbac_decides_what_a_user_may_do(control_plane):
    """Nobody but the admin may do anything until RBAC grants it, to a user or to a group."""
    kubectl, namespace = control_plane.kubectl, ("--namespace", "cp-rbac")
    kubectl("create", "namespace", "cp-rbac", check=True)
    kubectl("create", "role", "viewer", "--verb=list", "--resource=configmaps", *namespace, check=True)
    bob = control_plane.kubeconfig("bob", ["viewers"])

    refused = kubectl("get", "configmaps", *namespace, config=bob)
    kubectl("create", "rolebinding", "viewers", "--role=viewer", "--group=viewers", *namespace, check=True)

    assert refused.returncode == 1
    assert 'User "bob" cannot list resource "configmaps"' in refused.stderr
    eventually(lambda: kubectl("get", "configmaps", *namespace, config=bob).returncode == 0)


def test_a_deployment_runs(complete_control_plane):
    """Built-in controllers, the scheduler and a played node bring three replicas to Running."""
    kubectl = complete_control_plane.kubectl
    kubectl("create", "namespace", "cp-running", check=True)
    kubectl("create", "deployment", "web", "--image=web", "--replicas=3", "-n", "cp-running", check=True)

    kubectl("rollout", "status", "deployment/web", "-n", "cp-running", "--timeout=30s", check=True)

    phases = kubectl("get", "pods", "-n", "cp-running", "-o", "jsonpath={.items[*].status.phase}", check=True).stdout
    assert phases == "Running Running Running"


def test_a_webhook_is_reached_as_a_service(complete_control_plane, tmp_path):
    """The API server calls loopback by a Service's name, and built-in controllers write as themselves."""
    kubectl, namespace = complete_control_plane.kubectl, "cp-hook"
    kubectl("create", "namespace", namespace, check=True)
    with denying_webhook(tmp_path, f"hook.{namespace}.svc") as (port, ca_bundle):
        kubectl("apply", "-f", "-", input=registration(namespace, port, ca_bundle), check=True)
        kubectl("create", "deployment", "web", "--image=web", "-n", namespace, check=True)
        failure = ("--for=condition=ReplicaFailure", "deployment/web", "--timeout=30s")
        kubectl("wait", "-n", namespace, *failure, check=True)
        conditions = kubectl("get", "deployment/web", "-n", namespace, "-o", "jsonpath={.status.conditions}").stdout
    kubectl("delete", "validatingwebhookconfiguration", namespace, check=True)

    assert "denied the request: system:serviceaccount:kube-system:replicaset-controller" in conditions


def test_a_killed_owner_leaves_nothing_running(binaries, tmp_path):
    """Killed with SIGKILL, the process that started a control plane takes all of it along."""
    owner = subprocess.Popen([sys.executable, "-c", OWNER, tmp_path], cwd=ROOT, stdout=subprocess.PIPE)
    assert owner.stdout is not None
    assert owner.stdout.readline() == b"up\n"
    programs = " ".join(running_in(tmp_path, besides=owner.pid))
    assert "/etcd " in programs
    assert "/kube-apiserver " in programs

    owner.kill()
    owner.wait()
    owner.stdout.close()

    eventually(lambda: not running_in(tmp_path, besides=owner.pid))

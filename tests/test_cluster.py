"""What is asked of the API server, against a small one: what is sent, and that every failure is a sentence."""

import json
import threading
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import yaml

from webhook.admission import GroupVersionResource, UserInfo
from webhook.cluster import Cluster, path_of
from webhook.errors import ClusterUnavailable

DEPLOYMENTS = GroupVersionResource(group="apps", version="v1", resource="deployments")
PODS = GroupVersionResource(group="", version="v1", resource="pods")
NAMESPACES = GroupVersionResource(group="", version="v1", resource="namespaces")
NODES = GroupVersionResource(group="", version="v1", resource="nodes")
ALICE = UserInfo(username="alice", uid="7", groups=("developers", "system:authenticated"))
REVIEWS = "/apis/authorization.k8s.io/v1/subjectaccessreviews"


class FakeApi(ThreadingHTTPServer):
    """Answers from `answers` by method and path, as (status, body) or by hanging; keeps what it was `asked`."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers: dict[tuple[str, str], Any] = {}
        self.asked: list[Any] = []
        self.let_go = threading.Event()
        self.drops = 0


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "FakeApi"

    def _answer(self):
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        self.server.asked.append((self.command, self.path, self.headers, body))
        if self.server.drops:
            self.server.drops -= 1
            self.close_connection = True
            return
        status, answer = self.server.answers.get((self.command, self.path), (404, {"kind": "Status"}))
        if status == "hang":
            self.server.let_go.wait(5)
            self.close_connection = True
            return
        content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        if status == 302:
            self.send_header("Location", "/elsewhere")
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PATCH = _answer  # noqa: N815 -- the base class wants it so

    def log_message(self, *_):
        pass


@pytest.fixture
def api():
    server = FakeApi()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.let_go.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def connect(api, tmp_path):
    """Connect with a kubeconfig that holds a token."""
    file = tmp_path / "kubeconfig"
    host = f"http://127.0.0.1:{api.server_address[1]}"
    file.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "c",
                "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
                "clusters": [{"name": "c", "cluster": {"server": host}}],
                "users": [{"name": "u", "user": {"token": "t0ken"}}],
            }
        )
    )
    made = []

    def connected(seconds):
        made.append(Cluster(file, timeout=timedelta(seconds=seconds)))
        return made[-1]

    yield connected
    for one in made:
        if one._client is not None:
            one._client.rest_client.pool_manager.clear()


@pytest.fixture
def cluster(connect):
    return connect(10)


@pytest.fixture
def hasty(connect):
    """A connection that does not wait long."""
    return connect(0.2)


@pytest.mark.parametrize(
    ("resource", "namespace", "path"),
    [
        (DEPLOYMENTS, "shop", "/apis/apps/v1/namespaces/shop/deployments"),
        (DEPLOYMENTS, "", "/apis/apps/v1/deployments"),
        (PODS, "shop", "/api/v1/namespaces/shop/pods"),
        (NODES, "", "/api/v1/nodes"),
        (NAMESPACES, "shop", "/api/v1/namespaces"),
        (PODS, "a/../../b?c", "/api/v1/namespaces/a%2F..%2F..%2Fb%3Fc/pods"),
    ],
)
def test_a_resource_has_a_path(resource, namespace, path):
    """A Namespace stands in no namespace, though its review says so; nothing in a name leads elsewhere."""
    assert path_of(resource, namespace) == path


def test_an_object_is_fetched_with_our_token(api, cluster):
    """Raw JSON, as it is stored."""
    found = {"kind": "Deployment", "metadata": {"name": "web"}}
    api.answers["GET", "/apis/apps/v1/namespaces/shop/deployments/web"] = (200, found)

    assert cluster.get(DEPLOYMENTS, "shop", "web") == found
    (asked,) = api.asked
    assert asked[2]["Authorization"] == "Bearer t0ken"
    assert asked[2]["Accept"] == "application/json"


def test_not_found_is_an_answer(cluster):
    """The object is not there; that is no failure."""
    assert cluster.get(DEPLOYMENTS, "shop", "web") is None


def test_a_name_leads_nowhere_else(api, cluster):
    """It comes out of a review."""
    cluster.get(DEPLOYMENTS, "shop", "../../secrets/x?y")

    assert api.asked[0][1] == "/apis/apps/v1/namespaces/shop/deployments/..%2F..%2Fsecrets%2Fx%3Fy"


QUESTIONS = {
    "get": lambda cluster: cluster.get(DEPLOYMENTS, "shop", "web"),
    "right": lambda cluster: cluster.may_break_glass(ALICE, DEPLOYMENTS, "shop", "web"),
}
FAILURES = [
    ((401, {}), "401"),
    ((403, {"message": "no"}), "403"),
    ((409, {}), "409"),
    ((429, {}), "429"),
    ((500, b"oops"), "500"),
    ((503, {}), "503"),
    ((302, b""), ""),
    ((200, b""), ""),
    ((200, b"<html>"), ""),
    ((200, b"\xff\xfe"), ""),
    ((200, b"[1]"), ""),
    ((200, b'"text"'), ""),
    ((200, b"null"), ""),
    (("hang", b""), "did not answer"),
]


@pytest.mark.parametrize(("answer", "says"), FAILURES)
@pytest.mark.parametrize("question", ["get", "right"])
def test_a_failure_is_a_sentence(api, connect, question, answer, says):
    """Refusals, errors, timeouts and garbage: never an answer, and nothing but ClusterUnavailable."""
    api.answers["GET", "/apis/apps/v1/namespaces/shop/deployments/web"] = answer
    api.answers["POST", REVIEWS] = answer

    ask = QUESTIONS[question]

    with pytest.raises(ClusterUnavailable) as raised:
        ask(connect(0.2 if answer[0] == "hang" else 10))

    assert str(raised.value).startswith("the API server")
    assert says in str(raised.value)
    assert "t0ken" not in str(raised.value)
    assert not [path for _, path, _, _ in api.asked if path == "/elsewhere"]


def test_nobody_is_there(cluster, api):
    """A refused connection is a sentence too."""
    api.shutdown()
    api.server_close()

    with pytest.raises(ClusterUnavailable, match="did not answer"):
        cluster.get(DEPLOYMENTS, "shop", "web")


def test_a_question_has_one_time_limit(api, hasty):
    """Not one for each attempt: the API server waits five seconds for us, and a scale asks twice."""
    api.answers["GET", "/apis/apps/v1/namespaces/shop/deployments/web"] = ("hang", b"")

    with pytest.raises(ClusterUnavailable):
        hasty.get(DEPLOYMENTS, "shop", "web")

    assert len(api.asked) == 1


def test_a_connection_that_was_closed_meanwhile_is_opened_again(api, cluster):
    """The API server closes idle connections; the first question after that must not fail."""
    found = {"kind": "Deployment"}
    api.answers["GET", "/apis/apps/v1/namespaces/shop/deployments/web"] = (200, found)
    cluster.get(DEPLOYMENTS, "shop", "web")
    api.drops = 1

    assert cluster.get(DEPLOYMENTS, "shop", "web") == found


@pytest.mark.parametrize(
    ("status", "allowed"),
    [
        ({"allowed": True}, True),
        ({"allowed": False}, False),
        ({"allowed": True, "denied": True}, False),
        ({"allowed": "true"}, False),
        ({"allowed": 1}, False),
        ({}, False),
        (None, False),
    ],
)
def test_a_right_is_asked_for_by_its_verb(api, cluster, status, allowed):
    """A SubjectAccessReview about the object's own resource; only a clear yes is one."""
    api.answers["POST", REVIEWS] = (201, {"status": status})

    assert cluster.may_break_glass(ALICE, DEPLOYMENTS, "shop", "web") is allowed
    (_, _, headers, body) = api.asked[0]
    assert headers["Content-Type"] == "application/json"
    assert json.loads(body) == {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {
            "user": "alice",
            "uid": "7",
            "groups": ["developers", "system:authenticated"],
            "resourceAttributes": {
                "verb": "break-glass",
                "group": "apps",
                "version": "v1",
                "resource": "deployments",
                "namespace": "shop",
                "name": "web",
            },
        },
    }


PATCH = [{"op": "test", "path": "/metadata/name", "value": "web"}]
PLACE = "/apis/apps/v1/namespaces/shop/deployments/web?fieldManager=driftgate"


def test_a_patch_is_sent_as_one(api, cluster):
    """Under our own field manager."""
    api.answers["PATCH", PLACE] = (200, {"kind": "Deployment"})

    assert cluster.json_patch(DEPLOYMENTS, "shop", "web", PATCH) == {"kind": "Deployment"}
    (_, _, headers, body) = api.asked[0]
    assert headers["Content-Type"] == "application/json-patch+json"
    assert json.loads(body) == PATCH


def test_a_patch_of_what_is_gone_is_nothing(cluster):
    """Then there is nothing left to do."""
    assert cluster.json_patch(DEPLOYMENTS, "shop", "web", PATCH) is None


def test_a_patch_whose_test_does_not_fit_is_tried_again_later(api, cluster):
    """The API server says 422: somebody was faster, and nothing was changed."""
    api.answers["PATCH", PLACE] = (422, {"kind": "Status", "reason": "Invalid"})

    with pytest.raises(ClusterUnavailable, match="422"):
        cluster.json_patch(DEPLOYMENTS, "shop", "web", PATCH)


def test_a_patch_is_never_sent_twice(api, hasty):
    """Nobody knows whether the first one took effect."""
    api.answers["PATCH", PLACE] = ("hang", b"")

    with pytest.raises(ClusterUnavailable):
        hasty.json_patch(DEPLOYMENTS, "shop", "web", PATCH)

    assert len(api.asked) == 1


SELECTOR = "driftgate.dev/break-glass=active"
QUERY = "?labelSelector=driftgate.dev%2Fbreak-glass%3Dactive"


def discovery(api):
    """Let the API server have two kinds that can be stamped, some that can't, and a group that is down."""
    group = {"name": "apps", "preferredVersion": {"groupVersion": "apps/v1", "version": "v1"}}
    down = {"name": "metrics.k8s.io", "preferredVersion": {"groupVersion": "metrics.k8s.io/v1", "version": "v1"}}
    verbs = ["create", "get", "list", "patch"]
    api.answers.update(
        {
            ("GET", "/apis"): (200, {"groups": [group, down]}),
            ("GET", "/api/v1"): (
                200,
                {
                    "resources": [
                        {"name": "configmaps", "kind": "ConfigMap", "namespaced": True, "verbs": verbs},
                        {"name": "componentstatuses", "kind": "ComponentStatus", "verbs": ["get", "list"]},
                        {"name": "pods/log", "kind": "Pod", "verbs": verbs},
                        {"name": "bindings", "kind": "Binding"},
                    ]
                },
            ),
            ("GET", "/apis/apps/v1"): (
                200,
                {"resources": [{"name": "deployments", "kind": "Deployment", "namespaced": True, "verbs": verbs}]},
            ),
            ("GET", "/apis/metrics.k8s.io/v1"): (503, {}),
            ("GET", f"/api/v1/configmaps{QUERY}"): (403, {}),
        }
    )


def test_stamped_objects_are_found_whatever_their_kind(api, cluster):
    """A group that is down, or a kind that we may not list, does not stop the others."""
    discovery(api)
    web = {"metadata": {"name": "web", "namespace": "shop"}}
    api.answers["GET", f"/apis/apps/v1/deployments{QUERY}"] = (200, {"kind": "DeploymentList", "items": [web]})

    ((resource, found),) = cluster.stamped_objects(SELECTOR)

    assert resource == DEPLOYMENTS
    assert found["metadata"] == web["metadata"]
    assert not [path for _, path, _, _ in api.asked if "componentstatuses" in path or "log" in path]


def test_an_item_of_a_list_has_its_kind(api, cluster):
    """The API server leaves it out there; a stamp's seal is about it."""
    discovery(api)
    web = {"metadata": {"name": "web", "namespace": "shop"}}
    listed = {"kind": "DeploymentList", "apiVersion": "apps/v1", "items": [web]}
    api.answers["GET", f"/apis/apps/v1/deployments{QUERY}"] = (200, listed)

    ((_, found),) = cluster.stamped_objects(SELECTOR)

    assert (found.get("apiVersion"), found.get("kind")) == ("apps/v1", "Deployment")


@pytest.mark.parametrize(
    "answer", [(200, {"groups": [{"name": "x"}]}), (200, {"groups": None}), (500, {}), (200, b"[]")]
)
def test_an_odd_discovery_is_no_crash(api, cluster, answer):
    """What is there is searched, or it is said that nothing can be."""
    discovery(api)
    api.answers["GET", "/apis"] = answer

    try:
        assert list(cluster.stamped_objects(SELECTOR)) == []
    except ClusterUnavailable as error:
        assert str(error)  # noqa: PT017 -- either is right


def test_without_a_way_to_the_cluster_that_is_said(tmp_path):
    """No kubeconfig, a broken one, an empty one."""
    for content in (None, "", "{", "kind: Config"):
        file = tmp_path / "kubeconfig"
        if content is not None:
            file.write_text(content)

        with pytest.raises(ClusterUnavailable, match=r"no way to reach the cluster|did not answer"):
            Cluster(file).get(DEPLOYMENTS, "shop", "web")


def test_a_library_says_nothing_on_standard_output(tmp_path, monkeypatch, capfd):
    """Log lines are JSON; in a pod there is no kubeconfig, and the library would tell everybody."""
    import kubernetes.config

    monkeypatch.setattr(kubernetes.config, "KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "none"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)

    with pytest.raises(ClusterUnavailable, match="no way to reach the cluster"):
        Cluster().get(DEPLOYMENTS, "shop", "web")

    assert capfd.readouterr().out == ""


def test_nothing_is_opened_before_the_first_question(tmp_path):
    """A worker is forked in between."""
    assert Cluster(tmp_path / "none")._client is None

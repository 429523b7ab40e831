"""What is answered over HTTP, by the ASGI entry and by Flask alike."""

import asyncio
import io
import json

import pytest

from tests.fakes_server import SECRET, FakeReviewer, call_asgi, review
from webhook import app
from webhook.app import MAX_BODY, create_app
from webhook.asgi import Entry
from webhook.config import ServerSettings

JSON = "application/json"
NESTED = b'{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":' + b"[" * 100_000
NESTED_OBJECT = review().replace(b'"object": {', b'"object": {"x":' + b"[" * 100_000 + b"]" * 100_000 + b",")
OTHER_VERSION = review().replace(b"k8s.io/v1", b"k8s.io/v1beta1")


def ask_flask(reviewer, path, body=b"", method="POST", kind=JSON):
    response = create_app(reviewer).test_client().open(path, method=method, data=body, content_type=kind)
    return response.status_code, {name.lower(): value for name, value in response.headers.items()}, response.data


def ask_entry(reviewer, path, body=b"", method="POST", kind=JSON):
    entry = Entry(reviewer, ServerSettings())
    try:
        return asyncio.run(call_asgi(entry, path, body, method=method, kind=kind))
    finally:
        entry.close()


@pytest.fixture(params=[ask_flask, ask_entry], ids=["flask", "asgi"])
def ask(request):
    """Both ways to ask."""
    return request.param


def lines(capfd):
    """Return what was logged: each line must be an object of JSON."""
    return [json.loads(line) for line in capfd.readouterr().out.splitlines()]


WRONG = [
    ("POST", "/validate", JSON, b"", 400, "no AdmissionReview"),
    ("POST", "/validate", JSON, b"{", 400, "no AdmissionReview"),
    ("POST", "/mutate", JSON, b"\xff\xfe", 400, "no AdmissionReview"),
    ("POST", "/validate", JSON, b"[]", 400, "no AdmissionReview"),
    ("POST", "/validate", JSON, OTHER_VERSION, 400, "admission.k8s.io/v1beta1"),
    ("POST", "/validate", JSON, NESTED, 400, "no AdmissionReview"),
    ("POST", "/validate", JSON, NESTED_OBJECT, 400, "no AdmissionReview"),
    ("POST", "/validate", JSON, review("malformed-inside"), 400, "no Kubernetes object"),
    ("POST", "/mutate", JSON, b"x" * (MAX_BODY + 1), 413, "7 MiB"),
    ("POST", "/validate", "text/plain", review(), 415, "application/json"),
    ("POST", "/validate", "application/jsonp", review(), 415, "application/json"),
    ("POST", "/validate", "", review(), 415, "application/json"),
    ("GET", "/validate", JSON, b"", 405, "POST to /validate"),
    ("PUT", "/mutate", JSON, review(), 405, "POST to /validate"),
    ("OPTIONS", "/mutate", "", b"", 405, "POST to /validate"),
    ("POST", "/healthz", JSON, b"", 405, "GET /healthz"),
    ("GET", "/", "", b"", 404, "nothing here"),
    ("POST", "/validate/", JSON, review(), 404, "nothing here"),
    ("POST", "/validate/raises", JSON, review(), 404, "nothing here"),
    ("POST", "/validate", JSON, review("raises"), 500, "its log says where"),
    ("POST", "/mutate", JSON, review("slow-raises"), 500, "its log says where"),
]


@pytest.mark.parametrize(("method", "path", "kind", "body", "status", "words"), WRONG)
def test_a_wrong_request_is_told_so_in_one_sentence(ask, capfd, method, path, kind, body, status, words):
    """Neither an answer nor the log ever holds a stack trace, or the text of an unexpected exception."""
    answer_status, headers, answer = ask(FakeReviewer(), path, body, method, kind)

    assert (answer_status, headers["content-type"]) == (status, "text/plain; charset=utf-8")
    assert words in answer.decode()
    assert answer.count(b"\n") == 1
    logged = lines(capfd)
    assert not [word for word in ("Traceback", SECRET) if word in answer.decode() or word in str(logged)]
    assert ("allow" in headers) == (status == 405)


@pytest.mark.parametrize("name", ["web", "slow", "recorded", "record-fails"])
@pytest.mark.parametrize("path", ["/validate", "/mutate"])
def test_a_review_is_answered_by_the_reviewer(ask, path, name):
    """The answer is the reviewer's, byte by byte, whether it took a thread or a record, even one that failed."""
    status, headers, answer = ask(FakeReviewer(), path, review(name))

    assert (status, headers["content-type"]) == (200, JSON)
    assert json.loads(answer)["response"]["status"]["message"] == f"denied at {path[1:]}"
    assert headers["content-length"] == str(len(answer))


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "Application/JSON"])
def test_a_content_type_may_have_parameters(ask, kind):
    """Media types are compared without case and parameters."""
    assert ask(FakeReviewer(), "/validate", review(), kind=kind)[0] == 200


def test_a_review_of_five_mebibytes_is_answered(ask):
    """Two objects of the largest size that etcd takes fit."""
    assert ask(FakeReviewer(), "/validate", review(size=5 * 1024 * 1024))[0] == 200


@pytest.mark.parametrize(("name", "event"), [("record-fails", "record.failed"), ("record-never", "record.late")])
def test_a_denial_without_its_record_is_still_a_denial(ask, capfd, monkeypatch, name, event):
    """The wait for a record is bounded, and what became of it is logged."""
    monkeypatch.setattr(app, "RECORD_TIMEOUT", 0.1)

    status, _, answer = ask(FakeReviewer(), "/validate", review(name))

    assert (status, json.loads(answer)["response"]["allowed"]) == (200, False)
    assert [line["event"] for line in lines(capfd)] == [event]


def test_it_is_alive_and_says_why_it_is_not_ready(ask):
    """Liveness does not depend on readiness."""
    reviewer = FakeReviewer(reason="the certificate is not trusted yet")

    assert ask(reviewer, "/healthz", method="GET")[0] == 200
    assert ask(reviewer, "/readyz", method="GET")[::2] == (503, b"the certificate is not trusted yet\n")
    assert ask(FakeReviewer(), "/readyz", method="GET")[0] == 200


def test_flask_counts_a_chunked_body_too():
    """A body that does not tell its length is limited where the WSGI server marks its end."""
    response = (
        create_app(FakeReviewer())
        .test_client()
        .post(
            "/validate",
            input_stream=io.BytesIO(b"x" * (MAX_BODY + 1)),
            content_type=JSON,
            environ_overrides={"wsgi.input_terminated": True},
        )
    )

    assert response.status_code == 413

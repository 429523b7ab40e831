"""Recorded AdmissionReviews, and what is made of them for a test."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from webhook.admission import AdmissionRequest, Object, parse_review

RECORDED = Path(__file__).parent / "reviews"


def body(name: str) -> bytes:
    """Return a recorded review as it was sent."""
    return (RECORDED / f"{name}.json").read_bytes()


def request(name: str) -> AdmissionRequest:
    """Return the request of a recorded review."""
    return parse_review(body(name))


def changed(name: str, **fields: Any) -> AdmissionRequest:
    """Return a recorded request with some of its JSON fields replaced; None takes a field away."""
    review = json.loads(body(name))
    review["request"].update(fields)
    review["request"] = {key: value for key, value in review["request"].items() if value is not None}
    return parse_review(json.dumps(review).encode())


@cache
def _parent(name: str) -> str:
    return json.dumps(request(name).old_object)


def argocd_deployment() -> Object:
    """Return the Deployment guestbook/web, of Argo CD, as it was stored."""
    found: Object = json.loads(_parent("kubectl-edit.csa.validate"))
    return found


def flux_deployment() -> Object:
    """Return the Deployment shop/web, of Flux, as it was stored."""
    found: Object = json.loads(_parent("kubectl-edit.ssa.validate"))
    return found

"""One AdmissionReview from end to end. (Being written: the seam that the server builds on stands below.)"""

from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

from webhook.admission import AdmissionRequest, Webhook


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back to the API server, and what has to be on disk before it may."""

    body: bytes
    recorded: Future[None] | None = None


class Reviewer(Protocol):
    """Judges reviews. Never raises: what can't be judged is answered by the fail mode."""

    def is_slow(self, webhook: Webhook, request: AdmissionRequest) -> bool:
        """Tell whether judging may wait for the cluster or take long: then not on the event loop."""
        ...

    def judge(self, webhook: Webhook, request: AdmissionRequest) -> Answer:
        """Return the answer."""
        ...

    def ready(self) -> str | None:
        """Return why reviews can't be judged now, or None if they can."""
        ...

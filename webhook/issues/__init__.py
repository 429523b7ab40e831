"""The seam to where issues are kept: what an issue is, and what every tracker promises.

One file a Git host, plus `local.py`, the embedded default. None of them decides when an issue is filed or what it says:
`controller.py` and `messages.py` do. Text arrives escaped.

Every promise here is idempotent, because the controller may die between filing an issue and remembering that it did:
an issue is known by its `marker`, a comment by its `key`, and doing the same again changes nothing.
"""

from dataclasses import dataclass
from typing import Protocol, assert_never

from webhook.config import Config, TrackerKind
from webhook.errors import TrackerError

__all__ = ["Filed", "Issue", "Tracker", "open_tracker"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Issue:
    """What is filed about one break-glass window.

    `marker` is the window's ULID. `title` may hold anything that users wrote; a tracker shows it on one line.
    `body` is Markdown, already escaped.
    """

    marker: str
    title: str
    body: str
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Filed:
    """Where an issue is: its number at the host, and something that a person can open or type to read it."""

    number: int | str
    url: str


class Tracker(Protocol):
    """Keeps issues. Each call either has taken effect when it returns, or raises TrackerError with a sentence.

    After a TrackerError nobody knows whether it took effect: the same call again is always right.
    """

    def file(self, issue: Issue) -> Filed:
        """Return where the issue with this marker is; file it if there is none, leave it as it is if there is."""

    def find(self, marker: str) -> Filed | None:
        """Return where the issue with this marker is, open or closed; None if there is none."""

    def comment(self, marker: str, text: str, *, key: str) -> None:
        """Add a comment, unless this issue has one with the same `key` already."""

    def close(self, marker: str, text: str) -> None:
        """Close the issue with `text` as the last word, unless it is closed already."""


def open_tracker(config: Config) -> Tracker | None:
    """Return the tracker that `config` names, None for `none`. Nothing is read or made before the first call.

    Raises TrackerError if what the tracker needs is not installed.
    """
    match config.tracker.kind:
        case TrackerKind.NONE:
            return None
        case TrackerKind.LOCAL:
            return _local(config)
        case _ as never:
            assert_never(never)


def _local(config: Config) -> Tracker:
    try:
        from webhook.issues.local import LocalTracker  # noqa: PLC0415 -- GitPython costs time, and asks for git
    except ImportError as error:
        raise TrackerError(
            f"Issues can't be kept in a Git repository: {str(error).splitlines()[0]}. "
            "Install git, or set tracker.kind to none."
        ) from None
    return LocalTracker(config.issues)

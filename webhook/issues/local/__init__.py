"""Issues as Markdown files on the branch `driftgate/issues` of a Git repository: the tracker that needs no Git host.

Any Git reads them:

    git -C REPO show driftgate/issues:README.md                     all issues, one a line
    git -C REPO show driftgate/issues:issues/0001-shop-checkout.md  one of them
    git -C REPO log -p driftgate/issues                             what happened when
    git clone --branch driftgate/issues REPO                        everything, to browse

`page.py` knows what a file says, `repository.py` how it gets onto the branch. Every change is one commit that counts
only on top of the commit it was made from: who comes second reads again and tries again, so two writers lose nothing.
"""

import random
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import yaml

from webhook.errors import TrackerError
from webhook.issues import Filed, Issue
from webhook.issues.local import page as pages
from webhook.issues.local.page import Page
from webhook.issues.local.repository import BRANCH, FOLDER, INDEX, REF, Branch, Repository

AUTHOR = "driftgate <driftgate@localhost>"

_ATTEMPTS = 30  # with pauses of up to a second: about fifteen seconds


def _utc_now() -> datetime:
    return datetime.now(UTC)


class LocalTracker:
    """A `Tracker` on a branch of the Git repository at `path`. `author` is written as `Name <address>`."""

    def __init__(self, path: Path, *, author: str = AUTHOR, clock: Callable[[], datetime] = _utc_now) -> None:
        self._repository = Repository(path.absolute(), author)
        self._clock = clock

    def file(self, issue: Issue) -> Filed:
        """Return where the issue is, having filed it if there was none with its marker."""

        def step(branch: Branch) -> str | None:
            if found := self._find(branch, issue.marker):
                return found[0]
            page = pages.new_page(issue, branch.next_number, self._now())
            return self._write(branch, pages.file_name(page), page, "Open")

        return self._filed(self._settle(step))

    def find(self, marker: str) -> Filed | None:
        """Return where the issue is, open or closed; None if there is none."""
        found = self._find(self._repository.branch(), marker)
        return self._filed(found[0]) if found else None

    def comment(self, marker: str, text: str, *, key: str) -> None:
        """Add a comment, unless there is one with this key."""

        def step(branch: Branch) -> str | None:
            name, page = self._page(branch, marker)
            if page.has_comment(key):
                return name
            return self._write(branch, name, page.commented(text, key, self._now()), "Comment on")

        self._settle(step)

    def close(self, marker: str, text: str) -> None:
        """Close the issue with `text` as the last word, unless it is closed."""

        def step(branch: Branch) -> str | None:
            name, page = self._page(branch, marker)
            if page.is_closed:
                return name
            return self._write(branch, name, page.closed(text, self._now()), "Close")

        self._settle(step)

    def _settle(self, step: Callable[[Branch], str | None]) -> str:
        """Call `step` with the branch as it stands until it succeeds: None says that somebody else was faster."""
        for attempt in range(_ATTEMPTS):
            if done := step(self._repository.branch()):
                return done
            time.sleep(random.uniform(0, min(0.02 * 2**attempt, 1)))  # noqa: S311 -- jitter
        raise TrackerError(
            f"The branch {BRANCH} of {self._repository.path} stays locked, or moves all the time. If no git is at "
            f"work there, remove the file {REF}.lock in the repository. It is safe to try again."
        )

    def _find(self, branch: Branch, marker: str) -> tuple[str, Page] | None:
        """Return the name and the content of the issue with this marker."""
        if not pages.MARKER.fullmatch(marker):
            raise TrackerError(f"{marker[:40]!r} can't mark an issue: only letters, digits, dots and dashes can.")
        for name in self._repository.files_with(branch, marker):
            page = self._read(branch, name)
            if page.marker == marker:
                return name, page
        return None

    def _page(self, branch: Branch, marker: str) -> tuple[str, Page]:
        found = self._find(branch, marker)
        if not found:
            raise TrackerError(f"There is no issue {marker} in {self._repository.path}: file it first.")
        return found

    def _read(self, branch: Branch, name: str) -> Page:
        try:
            return pages.parse(self._repository.read(branch.issues[name].oid))
        except (ValueError, yaml.YAMLError) as error:
            raise TrackerError(
                f"The front matter of {FOLDER}/{name} on {BRANCH} in {self._repository.path} can't be read "
                f"({str(error).splitlines()[0]}): mend it on that branch."
            ) from None

    def _write(self, branch: Branch, name: str, page: Page, verb: str) -> str | None:
        """Commit the page, and the index with it. None if the branch has moved meanwhile."""
        old = branch.root.get(INDEX)
        index = pages.index_with(self._repository.read(old.oid) if old else b"", f"{FOLDER}/{name}", page)
        files = {f"{FOLDER}/{name}": pages.encode(page), INDEX: index}
        message = f"{verb} {name.removesuffix('.md')}\n"
        return name if self._repository.commit(branch, files, message, self._now()) else None

    def _filed(self, name: str) -> Filed:
        return Filed(number=int(name.partition("-")[0]), url=self._repository.command(f"{FOLDER}/{name}"))

    def _now(self) -> datetime:
        return self._clock().astimezone(UTC)

"""Break-glass windows from open to closed; records from the outbox to the ledger. One pass after the other.

The stamp on the object is the outbox: a window is believed when it is seen stored there, so a change that another
webhook refused files no issue and a forged review none either. Deletions and scales leave no stamp of their own: they
are believed when the live object shows them. Easy to get wrong: this may be killed anywhere and starts again; every
step is safe to do twice, and is written down only after it took effect.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

import msgspec

from webhook.admission import GroupVersionResource, Object, annotations, labels, metadata
from webhook.break_glass import (
    ACTIVE,
    ASK,
    ASKS,
    EVERYTHING,
    LABEL,
    SEAL,
    STAMPS,
    ObjectRef,
    Stamp,
    parse_time,
    print_time,
    read_stamp,
)
from webhook.errors import ClusterUnavailable, RecordsError, TrackerError
from webhook.issue_text import body_of, changes_nothing, closing_of, comment_of, title_of
from webhook.issues import Issue, Tracker
from webhook.logs import log, told
from webhook.messages import plain, print_value
from webhook.record import Drift, Record, new_ulid, print_millis
from webhook.windows import State, Transactions, Window, Windows

_GIVEN_UP = timedelta(seconds=60)
"""How long a granted change may take to be seen stored; then something after us refused it."""
_SEARCH = timedelta(minutes=10)
"""How often the whole cluster is searched for stamps that no record tells of."""


class Objects(Protocol):
    """What the controller does in the cluster. Raises ClusterUnavailable."""

    def get(self, resource: GroupVersionResource, namespace: str, name: str) -> Object | None:
        """Return the object as it is stored, or None."""
        ...

    def json_patch(
        self, resource: GroupVersionResource, namespace: str, name: str, patch: Sequence[dict[str, Any]]
    ) -> Object | None:
        """Apply a JSON Patch; None if the object is not there."""
        ...

    def stamped_objects(self, selector: str) -> Iterator[tuple[GroupVersionResource, Object]]:
        """Yield every object with a label."""
        ...


class Ledger(Transactions, Protocol):
    """What is needed of the ledger."""

    def append(self, records: Sequence[Record]) -> object:
        """Add records."""
        ...

    def take_in(self, directory: Path) -> int:
        """Move records from the outbox; return how many."""
        ...


class Controller:
    """Looks after windows. `now` is the clock and `new_id` makes ULIDs."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        outbox: Path,
        cluster: Objects,
        tracker: Tracker | None,
        seal_key: bytes,
        cluster_name: str = "",
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        new_id: Callable[[], str] = new_ulid,
    ) -> None:
        self._ledger = ledger
        self._outbox = outbox
        self._cluster = cluster
        self._tracker = tracker
        self._key = seal_key
        self._cluster_name = cluster_name
        self._now = now
        self._new_id = new_id
        self._windows = Windows(ledger)
        self._searched: datetime | None = None

    def run(self, stop: threading.Event, *, pause: float = 1.0) -> None:
        """Pass after pass until `stop` is set. A pass that fails is logged and tried again."""
        while not stop.is_set():
            try:
                self.pass_once()
            except (ClusterUnavailable, RecordsError, TrackerError) as error:
                log("controller.delayed", reason=plain(str(error), 400))
            except Exception as error:  # noqa: BLE001 -- one odd object must not end the care for all others
                log("controller.failed", **told(error))
            stop.wait(pause)

    def pass_once(self) -> None:
        """Take in what the webhook recorded, and look after every window that is not over."""
        self._ledger.take_in(self._outbox)
        self._windows.take_in(print_time(self._now()))
        for window in self._windows.unfinished():
            try:
                self._look_after(window)
            except (ClusterUnavailable, TrackerError) as error:
                log("window.delayed", window=window.id, reason=plain(str(error), 400))
            except Exception as error:  # noqa: BLE001 -- nor one odd window
                log("window.failed", window=window.id, **told(error))
        self._search()

    def _look_after(self, window: Window) -> None:
        live = self._cluster.get(window.resource, window.ref.namespace, window.ref.name)
        stamp = read_stamp(live, window.ref, self._key)
        if stamp is None or stamp.id != window.id:
            self._without_stamp(window, live)
            return
        if window.state is State.PENDING:
            self._opened(window, stamp)
        records = self._windows.unsettled(window.id)
        stored = _stored(records, live, self._windows.stored_writes(window.id, stamp.write))
        self._tell(window, stamp, stored)
        if live is not None and (ASK not in annotations(live) or self._now() >= stamp.until):
            if not stored:  # the last chance to tell
                self._tell_of_lost_records(window, stamp)
            self._close(window, live, "its time was up" if ASK in annotations(live) else "the ask was removed")
        else:
            self._give_up([record for record in records if record not in stored])
            if not records and self._now() - parse_time(window.since) >= _GIVEN_UP:
                self._tell_of_lost_records(window, stamp)

    def _opened(self, window: Window, stamp: Stamp) -> None:
        with self._ledger.transaction():
            self._windows.put(window.id, state=State.OPEN, until=print_time(stamp.until))
            self._record(window, "window.opened", f"until {print_time(stamp.until)}: {window.why}")

    def _tell(self, window: Window, stamp: Stamp, stored: Sequence[Record]) -> None:
        """File the issue with the first change, and comment on each further one."""
        changed = [record for record in stored if not changes_nothing(record.drift)]
        issue = window.issue
        for record in changed if self._tracker else ():
            assert self._tracker is not None  # noqa: S101 -- the loop above is empty without one
            if issue:
                self._tracker.comment(window.id, comment_of(record), key=record.id)
                self._windows.settle([record])
                continue
            body = body_of(record, by=stamp.by, why=window.why, until=print_time(stamp.until))
            issue = self._tracker.file(
                Issue(marker=window.id, title=title_of(record), body=body, labels=("drift",))
            ).url
            with self._ledger.transaction():
                self._windows.put(window.id, state=State.OPEN, issue=issue, until=print_time(stamp.until))
                self._record(window, "issue.filed", issue)
                self._windows.settle([record])
        self._windows.settle([record for record in stored if record not in changed or self._tracker is None])

    def _tell_of_lost_records(self, window: Window, stamp: Stamp) -> None:
        """File an issue from the stamp alone, where a change was stored and no record of it has come for long."""
        if not stamp.write or window.issue or self._tracker is None:
            return
        about = msgspec.structs.replace(
            self._record_of(window, "review", ""),
            id=window.id,
            user=stamp.by,
            operation="UPDATE",
            drift=tuple(Drift(field, "(not recorded)", "(see the object)") for field in stamp.fields),
        )
        self._tell(window, stamp, [about])

    def _without_stamp(self, window: Window, live: Object | None) -> None:
        """Look after a window whose object carries no stamp of it: deleted, given back, or never stored."""
        records = self._windows.unsettled(window.id)
        is_gone = live is None or "deletionTimestamp" in metadata(live)
        deleted = [record for record in records if record.operation == "DELETE" and _is_deleted(record, live)]
        if deleted:
            last = Stamp(id=window.id, by=window.by, until=parse_time(window.until), fields=(EVERYTHING,))
            writes = self._windows.stored_writes(window.id, deleted[-1].after_write)
            self._tell(window, last, _stored(records, None, writes))
        if deleted or window.state in {State.OPEN, State.CLOSING}:
            gone = "the object was deleted" if is_gone or deleted else "its stamp is gone"
            self._ended(window, window.outcome or gone)
        elif not any(self._is_young(record) for record in records):
            self._give_up(records, at_once=True)
            self._windows.put(window.id, state=State.VOID)

    def _is_young(self, record: Record) -> bool:
        return self._now() - parse_time(record.time) < _GIVEN_UP

    def _give_up(self, records: Sequence[Record], *, at_once: bool = False) -> None:
        """Settle granted changes that were never stored: something after us refused them."""
        for record in records:
            if at_once or not self._is_young(record):
                log("change.not_stored", record=record.id, window=record.window)
                self._windows.settle([record], given_up=True)

    def _close(self, window: Window, live: Object, outcome: str) -> None:
        """Take ask, stamp and label away, only our own and only if they are still what we looked at."""
        patch: list[dict[str, Any]] = []
        for key in sorted({SEAL, *ASKS, *STAMPS} & annotations(live).keys()):
            pointer = f"/metadata/annotations/{key.replace('/', '~1')}"
            patch.append({"op": "test", "path": pointer, "value": annotations(live)[key]})
            patch.append({"op": "remove", "path": pointer})
        if LABEL in labels(live):
            patch.append({"op": "remove", "path": f"/metadata/labels/{LABEL.replace('/', '~1')}"})
        self._windows.put(window.id, state=State.CLOSING, outcome=outcome)
        self._cluster.json_patch(window.resource, window.ref.namespace, window.ref.name, patch)
        self._ended(window, outcome)

    def _ended(self, window: Window, outcome: str) -> None:
        if self._tracker is not None and self._tracker.find(window.id) is not None:
            self._tracker.comment(window.id, closing_of(outcome), key=f"{window.id}-closed")
        with self._ledger.transaction():
            self._windows.put(window.id, state=State.CLOSED)
            self._record(window, "window.closed", outcome)

    def _search(self) -> None:
        """Find stamps in the cluster that no record tells of: those of an outbox that was lost."""
        now = self._now()
        if self._searched is not None and now - self._searched < _SEARCH:
            return
        for resource, found in self._cluster.stamped_objects(f"{LABEL}={ACTIVE}"):
            meta = metadata(found)
            kind = str(found.get("kind") or "")
            ref = ObjectRef(group=resource.group, kind=kind, namespace=meta.get("namespace") or "", name=meta["name"])
            stamp = read_stamp(found, ref, self._key)
            if stamp is not None:
                self._windows.adopt(
                    Window(
                        id=stamp.id,
                        resource=resource,
                        ref=ref,
                        by=stamp.by,
                        why=annotations(found).get(ASK, ""),
                        until=print_time(stamp.until),
                        state=State.PENDING,
                        since=print_time(now),
                    )
                )
        self._searched = now

    def _record(self, window: Window, event: str, detail: str) -> None:
        log(event, window=window.id, kind=window.ref.kind, namespace=window.ref.namespace, name=window.ref.name)
        self._ledger.append([self._record_of(window, event, detail)])

    def _record_of(self, window: Window, event: str, detail: str) -> Record:
        return Record(
            id=self._new_id(),
            time=print_millis(self._now()),
            event=event,
            cluster=self._cluster_name,
            user=window.by,
            group=window.ref.group,
            version=window.resource.version,
            resource=window.resource.resource,
            kind=window.ref.kind,
            namespace=window.ref.namespace,
            name=window.ref.name,
            window=window.id,
            until=window.until,
            ask=window.why,
            detail=plain(detail, 500),
        )


def _stored(records: Sequence[Record], live: Object | None, writes: frozenset[str]) -> list[Record]:
    """Return those granted changes that were stored: `writes`, as the stamp tells; a scale or a deletion by the object.

    Of several scales, one is known to have been stored by the next: it begins where that one ended.
    """
    is_gone = live is None or "deletionTimestamp" in metadata(live)
    replicas = {print_value(((live or {}).get("spec") or {}).get("replicas"))}
    stored = []
    for record in reversed(records):
        if record.operation == "DELETE":
            seen = is_gone
        elif record.sub_resource == "scale":
            seen = is_gone or all(drift.after in replicas for drift in record.drift)
            replicas.update(drift.before for drift in record.drift)
        else:
            seen = record.write in writes or changes_nothing(record.drift)
        if seen:
            stored.append(record)
    return stored[::-1]


def _is_deleted(record: Record, live: Object | None) -> bool:
    """Tell whether the object is gone or going, or another one of its name was created since: GitOps is quick.

    A record alone tells nothing: something after us may have refused the deletion, and a review may be forged.
    """
    created = str(metadata(live).get("creationTimestamp") or "")
    return live is None or "deletionTimestamp" in metadata(live) or created >= f"{record.time[:19]}Z"

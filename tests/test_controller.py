"""Break-glass windows from open to closed, with the real ledger; and that it may be killed anywhere."""

import contextlib
import copy
import re
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest

from tests.fakes import (
    ALICE,
    ARGOCD,
    BOB,
    KEY,
    NOON,
    WHY,
    ApiServer,
    FakeTracker,
    apply_patch,
    asking,
    deployment,
    without,
)
from webhook.admission import annotations, labels
from webhook.break_glass import ASK, ASK_FOR, LABEL, STAMPS, ObjectRef, open_stamp, stamp_annotations
from webhook.controller import Controller
from webhook.ledger import ALL, Ledger
from webhook.outbox import Outbox
from webhook.record import new_ulid

WEB = ObjectRef(group="apps", kind="Deployment", namespace="shop", name="web")
TRACKED = {"argocd.argoproj.io/tracking-id": "shop-prod:apps/Deployment:shop/web"}


class Killed(BaseException):
    """The process is gone."""


@dataclass
class Doom:
    """Kills at one step of all that take effect outside of the controller; by default at none."""

    at: int = 0
    steps: int = 0

    def step(self):
        self.steps += 1
        if self.steps == self.at:
            raise Killed


class Mortal:
    """Something whose named methods may be killed right before and right after they take effect."""

    def __init__(self, real, doom, names):
        self._real, self._doom, self._names = real, doom, names

    def __getattr__(self, name):
        real = getattr(self._real, name)
        if name == "transaction":
            return self._transaction
        if name not in self._names:
            return real

        def call(*args, **kwargs):
            self._doom.step()
            found = real(*args, **kwargs)
            self._doom.step()
            return found

        return call

    @contextlib.contextmanager
    def _transaction(self):
        self._doom.step()
        with self._real.transaction() as connection:
            yield connection
        self._doom.step()


@dataclass
class World:
    """An API server with our webhook, a tracker, and a ledger that controllers come and go on."""

    ledger: Ledger
    server: ApiServer = field(default_factory=lambda: ApiServer(deployment(), rights=["alice", "bob"]))
    tracker: FakeTracker = field(default_factory=FakeTracker)
    delivered: int = 0
    outbox: Path | None = None

    @property
    def now(self):
        return self.server.clock

    @property
    def stored(self):
        return self.server.stored(deployment())

    def deliver(self):
        """Hand over what the webhook recorded since the last time."""
        self.ledger.append(self.server.log.records[self.delivered :])
        self.delivered = len(self.server.log.records)

    def pass_(self, times=1, doom=None, tracker=True):
        """Let a new controller pass: whatever an earlier one had in mind is lost."""
        doom = doom or Doom()
        self.deliver()
        for _ in range(times):
            Controller(
                ledger=Mortal(self.ledger, doom, {"append", "take_in"}),
                outbox=self.outbox or self.ledger._path.parent / "outbox",
                cluster=Mortal(self.server.cluster, doom, {"json_patch"}),
                tracker=Mortal(self.tracker, doom, {"file", "comment", "close"}) if tracker else None,
                seal_key=KEY,
                now=self.now,
                new_id=lambda: new_ulid(now=self.now.now.timestamp),
            ).pass_once()

    def events(self):
        """Return the controller's own records, oldest first."""
        rows = self.ledger.list(ALL, limit=1000, newest_first=False)
        return [(row.record.event, row.record.detail) for row in rows if row.record.event != "review"]

    def issue(self):
        """Return the only issue there is."""
        (issue,) = self.tracker.issues.values()
        return issue

    def told(self):
        """Return the comments on the only issue, oldest first."""
        (marker,) = self.tracker.issues
        return list(self.tracker.comments.get(marker, {}).values())


@pytest.fixture
def world(tmp_path):
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        yield World(ledger)


def changed(obj, **spec):
    return {**copy.deepcopy(obj), "spec": {**obj["spec"], **spec}}


def open_window(world, **spec):
    """Let alice ask, and change `spec` in the same write."""
    outcome = world.server.update(asking(changed(deployment(), **spec)), ALICE)
    assert outcome.allowed, outcome.message
    return outcome.stored


def test_a_change_becomes_an_issue(world):
    """Its marker is the window, and it says who, why and what."""
    obj = open_window(world, replicas=5)

    world.pass_()

    issue = world.issue()
    assert issue.marker == annotations(obj)["driftgate.dev/break-glass-id"]
    assert issue.title == "Break-glass: Deployment shop/web changed by alice"
    assert issue.labels == ("drift",)
    assert f"| Why | `{WHY}` |" in issue.body
    assert "| `.spec.replicas` | `3` | `5` |" in issue.body
    assert "| Held until | 2026-11-23T13:00:00Z |" in issue.body
    assert world.events() == [
        ("window.opened", f"until 2026-11-23T13:00:00Z: {WHY}"),
        ("issue.filed", "https://git.example.org/issues/1"),
    ]


def test_one_issue_however_often_it_passes(world):
    """And nothing is told twice."""
    open_window(world, replicas=5)

    world.pass_(times=5)

    assert len(world.tracker.issues) == 1
    assert world.told() == []
    assert len(world.events()) == 2


def test_a_further_change_is_a_comment(world):
    """By whoever made it, under its own record."""
    obj = open_window(world, replicas=5)
    world.pass_()
    world.server.update(changed(obj, paused=True), BOB)

    world.pass_(times=3)

    (comment,) = world.told()
    assert comment.startswith("Changed again by `bob` at 2026-11-23T12:00:00.000Z")
    assert "| `.spec.paused` | `(absent)` | `true` |" in comment


def test_an_ask_alone_is_no_issue_yet(world):
    """The window is noted; the first change files it."""
    obj = open_window(world)
    world.pass_(times=2)
    assert world.tracker.issues == {}
    assert [event for event, _ in world.events()] == ["window.opened"]
    world.server.update(changed(obj, paused=True), BOB)

    world.pass_()

    assert "| Changed by | `bob` |\n| Opened by | `alice` |" in world.issue().body


@pytest.mark.parametrize("path", ["annotation", "label", "nested"])
def test_a_change_with_a_long_path_is_filed_too(world, path):
    """Paths are cut in records, and whole in stamps: still it is the same field."""
    obj = open_window(world)
    new = copy.deepcopy(obj)
    long = "k" * 250
    match path:
        case "annotation":
            new["metadata"]["annotations"][f"{long}.example.org/{'n' * 60}"] = "v"
        case "label":
            new["metadata"].setdefault("labels", {})[f"{long}.example.org/{'n' * 60}"] = "v"
        case "nested":
            new["spec"]["template"]["spec"][long] = {long: "v"}
    assert world.server.update(new).allowed

    world.pass_()

    assert len(world.tracker.issues) == 1


def test_a_field_with_an_odd_name_is_filed_too(world):
    """Control characters are blanks in records."""
    obj = open_window(world)
    new = copy.deepcopy(obj)
    new["spec"]["odd\nname"] = 1
    assert world.server.update(new).allowed

    world.pass_()

    assert len(world.tracker.issues) == 1


class TestRefusedAfterUs:
    """Another webhook, a quota or the storage may refuse what we granted: then nothing was changed."""

    def test_nothing_is_filed_and_after_a_minute_it_is_given_up(self, world):
        """The record stays in the ledger; nobody waits for the stamp any longer."""
        open_window(world, replicas=5)
        world.server.cluster.put(deployment())

        world.pass_(times=2)
        world.now.forward(seconds=59)
        world.pass_()
        waiting = unfinished(world)
        world.now.forward(seconds=2)
        world.pass_(times=2)

        assert len(waiting) == 1
        assert unfinished(world) == []
        assert world.tracker.issues == {}
        assert world.events() == []

    def test_a_further_change_that_was_refused_is_not_told(self, world):
        """The window has its issue; the change that never was has no comment."""
        obj = open_window(world, replicas=5)
        world.pass_()
        world.server.update(changed(obj, paused=True))
        world.server.cluster.put(obj)

        world.pass_()
        world.now.forward(seconds=61)
        world.pass_(times=2)

        assert world.told() == []

    def test_a_further_change_of_the_same_field_that_was_refused_is_not_told(self, world):
        """The stamp lists the field already: what stands there tells."""
        obj = open_window(world, replicas=5)
        world.pass_()
        world.server.update(changed(obj, replicas=99))
        world.server.cluster.put(obj)

        world.pass_()
        world.now.forward(seconds=61)
        world.pass_(times=2)

        assert world.told() == []

    def test_a_change_that_is_stored_late_is_filed_then(self, world):
        """Clocks differ: what was given up is looked at again when its stamp is seen."""
        obj = open_window(world, replicas=5)
        world.server.cluster.put(deployment())
        world.now.forward(seconds=61)
        world.pass_()
        world.server.cluster.put(obj)

        world.pass_(times=2)

        assert len(world.tracker.issues) == 1


def unfinished(world):
    with world.ledger.transaction() as connection:
        return connection.execute("SELECT id FROM windows WHERE state IN ('pending', 'open', 'closing')").fetchall()


class TestDeletion:
    """It leaves no stamp: the record is believed when the object is gone."""

    def test_it_is_filed_and_ends_the_window(self, world):
        """The issue says that GitOps will create the object again."""
        obj = open_window(world)
        world.pass_()
        assert world.server.delete(obj).allowed

        world.pass_(times=2)

        assert "The object was **deleted**." in world.issue().body
        assert world.told() == [
            "Break-glass ended: the object was deleted. The object is given back to Git; what Git does not say yet "
            "will be undone."
        ]
        assert world.events()[-1] == ("window.closed", "the object was deleted")

    def test_it_is_a_comment_where_there_is_an_issue(self, world):
        """A change, then the deletion."""
        obj = open_window(world, replicas=5)
        world.pass_()
        world.server.delete(obj)

        world.pass_()

        assert [text.partition("\n")[0][:13] for text in world.told()] == ["Changed again", "Break-glass e"]

    def test_an_object_that_is_still_there_was_not_deleted(self, world):
        """Somebody after us refused it."""
        obj = open_window(world, replicas=5)
        world.pass_()
        world.server.delete(obj)
        world.server.cluster.put(obj)

        world.now.forward(seconds=61)
        world.pass_(times=2)

        assert world.told() == []
        assert len(unfinished(world)) == 1

    def test_an_object_that_is_still_there_was_not_deleted_though_its_stamp_is_gone(self, world):
        """A review may be forged, or refused after us: a record alone tells nothing."""
        obj = open_window(world, replicas=5)
        obj["metadata"]["creationTimestamp"] = "2026-11-01T00:00:00Z"
        world.server.cluster.put(obj)
        world.pass_()
        world.server.delete(obj)
        world.server.cluster.put(without(obj, ASK, *STAMPS, label=True))

        world.pass_(times=2)

        assert "**deleted**" not in "".join(world.told())
        assert "the object was deleted" not in "".join(world.told())

    def test_a_terminating_object_was_deleted(self, world):
        """Finalizers may keep it for a while."""
        obj = open_window(world, replicas=5)
        world.pass_()
        world.server.delete(obj)
        obj["metadata"]["deletionTimestamp"] = "2026-11-23T12:00:01Z"
        world.server.cluster.put(obj)

        world.pass_()

        assert "The object was **deleted**." in world.told()[0]

    def test_git_ops_may_have_created_it_again_before_anybody_looked(self, world):
        """A new object of the same name, younger than the deletion, shows it too."""
        obj = open_window(world, replicas=5)
        world.pass_()
        world.server.delete(obj)
        again = deployment()
        again["metadata"].update(uid="u2", creationTimestamp="2026-11-23T12:00:04Z")
        world.server.cluster.put(again)
        world.now.forward(seconds=10)

        world.pass_()

        assert "The object was **deleted**." in "".join(world.told())

    def test_a_change_just_before_it_is_told_as_well(self, world):
        """Both happened, and nobody can look at the first any more."""
        obj = open_window(world, replicas=5)
        world.server.delete(obj)

        world.pass_()

        text = world.issue().body + "".join(world.told())
        assert "| `.spec.replicas` | `3` | `5` |" in text
        assert "The object was **deleted**." in text


class TestScale:
    """It leaves no stamp either: the live object shows the number."""

    def test_it_is_filed_once_it_is_seen(self, world):
        """The stamp lists the replicas from the start."""
        obj = open_window(world)
        world.pass_()
        world.server.scale(obj, 9)

        world.pass_(times=2)

        assert "| `.spec.replicas` | `3` | `9` |" in world.issue().body

    def test_it_is_given_up_where_it_is_not_seen(self, world):
        """Somebody after us refused it."""
        obj = open_window(world)
        world.pass_()
        world.server.scale(obj, 9)
        world.server.cluster.put(obj)

        world.pass_()
        world.now.forward(seconds=61)
        world.pass_(times=2)

        assert world.tracker.issues == {}

    def test_two_in_a_row_are_both_told(self, world):
        """What came next explains why the first number is not there any more."""
        obj = open_window(world)
        world.pass_()
        world.server.scale(obj, 9)
        world.server.scale(obj, 4)

        world.pass_()

        text = world.issue().body + "".join(world.told())
        assert "| `.spec.replicas` | `3` | `9` |" in text
        assert "| `.spec.replicas` | `9` | `4` |" in text


class TestClosing:
    """A window ends by time or by hand, and only what is ours goes."""

    def expected(self, obj):
        return apply_patch(
            obj,
            [
                *(
                    {"op": "remove", "path": f"/metadata/annotations/{key.replace('/', '~1')}"}
                    for key in (ASK, *STAMPS)
                ),
                {"op": "remove", "path": f"/metadata/labels/{LABEL.replace('/', '~1')}"},
            ],
        )

    def test_when_its_time_is_up(self, world):
        """Ask, stamp and label go; everything else stays as it is."""
        obj = open_window(world, replicas=5)
        obj["metadata"]["labels"]["app"] = "web"
        obj["metadata"]["annotations"]["driftgate.dev/source"] = "mine"
        world.server.cluster.put(obj)
        world.pass_()
        world.now.forward(minutes=59)
        world.pass_()
        assert world.stored == obj
        world.now.forward(minutes=1)

        world.pass_(times=2)

        assert world.stored == self.expected(obj)
        assert labels(world.stored) == {"app": "web"}
        assert world.told()[-1].startswith("Break-glass ended: its time was up.")
        assert world.events()[-1] == ("window.closed", "its time was up")
        assert len(world.events()) == 3

    def test_when_the_ask_is_removed(self, world):
        """The duration that was asked for goes with it."""
        obj = world.server.update(asking(changed(deployment(), replicas=5), duration="30m")).stored
        world.pass_()
        world.server.update(without(obj, ASK))

        world.pass_()

        left = annotations(world.stored)
        assert not {ASK, ASK_FOR, *STAMPS} & set(left)
        assert left == TRACKED
        assert world.events()[-1] == ("window.closed", "the ask was removed")

    def test_what_was_changed_in_the_write_that_closed_it_is_told(self, world):
        """It is in nobody's stamp, and on the object nonetheless."""
        obj = open_window(world, replicas=5)
        world.pass_()
        closing = world.server.update(without(changed(obj, paused=True), ASK))

        world.pass_(times=2)

        assert not closing.allowed or ".spec.paused" in "".join(world.told())

    def test_an_extension_moves_its_end(self, world):
        """What counts is the stamp."""
        obj = open_window(world, replicas=5)
        world.pass_()
        world.now.forward(minutes=50)
        world.server.update(asking(obj, duration="2h"))
        world.now.forward(minutes=30)

        world.pass_()

        assert ASK in annotations(world.stored)

    def test_a_stamp_that_changed_meanwhile_is_not_taken_away(self, world):
        """Somebody extended the window between our look and our patch."""
        obj = open_window(world, replicas=5)
        world.pass_()
        world.now.forward(minutes=59, seconds=59)
        extended = world.server.update(asking(obj, duration="2h")).stored
        world.now.forward(minutes=1)
        stale = World(world.ledger, world.server, world.tracker, world.delivered)
        real = world.server.cluster.get
        world.server.cluster.get = lambda *_: copy.deepcopy(obj)

        stale.pass_()

        world.server.cluster.get = real
        assert world.stored == extended
        assert len(unfinished(world)) == 1

    def test_it_goes_on_where_the_tracker_was_down(self, world):
        """How it ended is said as it was, when the tracker is back."""
        open_window(world, replicas=5)
        world.pass_()
        world.now.forward(hours=1)
        world.tracker.down = True
        world.pass_(times=2)
        world.tracker.down = False

        world.pass_(times=2)

        assert ASK not in annotations(world.stored)
        assert [text.split(".")[0] for text in world.told()] == ["Break-glass ended: its time was up"]
        assert world.events()[-1] == ("window.closed", "its time was up")

    def test_a_stamp_that_the_object_lost_ends_it(self, world):
        """An exempt program may have removed it."""
        open_window(world, replicas=5)
        world.pass_()
        world.server.cluster.put(deployment(5))

        world.pass_(times=2)

        assert world.events()[-1] == ("window.closed", "its stamp is gone")


class TestSearch:
    """A stamp tells of its window even where no record does: an outbox may be lost."""

    def test_a_stamp_without_a_record_is_found(self, world):
        """It is noted as open, and closed in time."""
        open_window(world, replicas=5)
        world.delivered = len(world.server.log.records)

        world.pass_(times=2)
        world.now.forward(hours=1)
        world.pass_()

        assert [event for event, _ in world.events() if event.startswith("window")] == [
            "window.opened",
            "window.closed",
        ]
        assert annotations(world.stored) == TRACKED

    def test_it_becomes_an_issue(self, world):
        """The stamp is the outbox: a change is not forgotten because its record is lost."""
        open_window(world, replicas=5)
        world.delivered = len(world.server.log.records)

        world.pass_(times=2)
        world.now.forward(seconds=120)
        world.pass_(times=2)

        assert ".spec.replicas" in world.issue().body
        assert "alice" in world.issue().body

    def test_it_becomes_an_issue_even_if_its_time_is_up_when_it_is_found(self, world):
        """The controller was away for longer than the window was open."""
        open_window(world, replicas=5)
        world.delivered = len(world.server.log.records)
        world.now.forward(hours=2)

        world.pass_(times=3)

        assert ".spec.replicas" in world.issue().body
        assert annotations(world.stored) == TRACKED

    def test_a_stamp_that_came_back_is_looked_after_again(self, world):
        """A backup may restore it after its window was closed: it must not stay for ever."""
        obj = open_window(world, replicas=5)
        world.pass_()
        world.server.update(without(obj, ASK))
        world.pass_()
        world.server.cluster.put(obj)
        world.now.forward(hours=2)

        world.pass_(times=3)

        assert annotations(world.stored) == TRACKED

    def test_a_record_that_comes_later_is_told(self, world):
        """The window is the same, and so is its issue."""
        open_window(world, replicas=5)
        late, world.delivered = world.delivered, len(world.server.log.records)
        world.pass_(times=2)

        world.delivered = late
        world.pass_(times=2)

        assert "| `.spec.replicas` | `3` | `5` |" in world.issue().body
        assert [event for event, _ in world.events()].count("window.opened") == 1

    def test_a_stamp_whose_seal_does_not_fit_is_none(self, world):
        """Forged while nobody looked: it files nothing."""
        stamp = open_stamp(
            id_=new_ulid(now=NOON.timestamp), by="mallory", until=NOON + timedelta(hours=8), fields=["*"]
        )
        forged = asking(deployment())
        forged["metadata"]["annotations"].update(stamp_annotations(stamp, WEB, b"another key"))
        forged["metadata"]["labels"] = {LABEL: "active"}
        world.server.cluster.put(forged)

        world.pass_(times=2)

        assert world.tracker.issues == {}
        assert world.stored == forged

    def test_an_outbox_is_taken_in(self, world, tmp_path):
        """Records come from the webhook's own segments."""
        open_window(world, replicas=5)
        outbox = Outbox(tmp_path / "outbox")
        for record in world.server.log.records:
            outbox.append(record).result(timeout=5)
        outbox.close()
        world.delivered, world.outbox = len(world.server.log.records), tmp_path / "outbox"

        world.pass_()

        assert len(world.tracker.issues) == 1


class TestOutages:
    """What is down comes back; nothing is lost meanwhile, and nothing is told twice."""

    def test_the_tracker(self, world):
        """The window is open all the same."""
        obj = open_window(world, replicas=5)
        world.tracker.down = True
        world.pass_(times=2)
        world.server.update(changed(obj, paused=True), BOB)
        world.pass_(times=2)
        assert [event for event, _ in world.events()] == ["window.opened"]
        world.tracker.down = False

        world.pass_(times=2)

        assert "| `.spec.replicas` | `3` | `5` |" in world.issue().body
        assert len(world.told()) == 1

    def test_the_cluster(self, world):
        """Nothing is given up while nobody can look."""
        open_window(world, replicas=5)
        world.server.cluster.down = True
        for _ in range(3):
            with contextlib.suppress(Exception):
                world.pass_()
            world.now.forward(seconds=61)
        world.server.cluster.down = False

        world.pass_()

        assert len(world.tracker.issues) == 1

    def test_there_may_be_no_tracker(self, world):
        """Then windows are looked after all the same."""
        open_window(world, replicas=5)
        world.pass_(tracker=False)
        world.now.forward(hours=1)

        world.pass_(tracker=False)

        assert annotations(world.stored) == TRACKED
        assert [event for event, _ in world.events()] == ["window.opened", "window.closed"]

    def test_a_window_that_fails_holds_up_no_other(self, world):
        """A record that makes no sense is somebody's bug, and not everybody's outage."""
        open_window(world, replicas=5)
        (record,) = world.server.log.records
        odd = msgspec.structs.replace(record, id=new_ulid(), window="no ULID", until="never", name="odd", time="then")
        world.ledger.append([odd])

        world.pass_(times=2)

        assert len(world.tracker.issues) == 1


def _change(world):
    open_window(world, replicas=5)


def _further(world):
    world.server.update(changed(world.stored, paused=True), BOB)


def _scale(world):
    world.server.scale(world.stored, 9)


def _unask(world):
    world.server.update(without(world.stored, ASK))


def _expire(world):
    world.now.forward(hours=1)


def _delete(world):
    world.server.delete(world.stored)


def live_through(path, steps, doom):
    """Let all steps happen, with a controller that is killed once, and tell what is there in the end."""
    with Ledger(path) as ledger:
        ledger._connection.execute("PRAGMA synchronous = OFF")  # a process is killed here, not a machine
        world = World(ledger)
        for step in steps:
            step(world)
            for _ in range(2):
                with contextlib.suppress(Killed):
                    world.pass_(doom=doom)
        return (
            [(issue.title, issue.body) for issue in world.tracker.issues.values()],
            [list(comments.values()) for comments in world.tracker.comments.values()],
            world.stored,
            world.events(),
        )


@pytest.mark.parametrize(
    "steps",
    [(_change, _further, _unask), (_change, _expire), (_change, _delete), (_change, _scale)],
    ids=["unasked", "expired", "deleted", "scaled"],
)
def test_it_may_be_killed_anywhere(tmp_path, steps, monkeypatch):
    """Before and after each effect outside of it; in the end all is as if it had not been."""
    monkeypatch.setattr("webhook.controller.log", lambda *_, **__: None)
    calm = Doom()
    expected = live_through(tmp_path / "calm.sqlite", steps, calm)
    wrong = {}
    for at in range(1, calm.steps + 1):
        found = live_through(tmp_path / f"{at}.sqlite", steps, Doom(at))
        differs = [
            name
            for name, one, other in zip(("issue", "comments", "object", "events"), found, expected, strict=True)
            if _comparable(one) != _comparable(other)
        ]
        if differs:
            wrong[at] = differs
    assert wrong == {}


def _comparable(found):
    """Leave out the ids, which are new in each life."""
    return re.sub(r"01[0-9A-HJKMNP-TV-Z]{24}|[0-9a-f]{32,64}", "ID", repr(found))


def test_a_reconciler_s_undo_after_the_end_is_nobody_s_change(world):
    """Given back to Git, the object is Git's again."""
    obj = open_window(world, replicas=5)
    world.pass_()
    world.server.update(without(obj, ASK))
    world.pass_()

    outcome = world.server.update(changed(world.stored, replicas=3), ARGOCD)

    assert outcome.reason == "Reconciler"
    world.pass_()
    assert len(world.told()) == 1

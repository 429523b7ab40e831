"""The same review again is counted, not recorded again."""

from datetime import timedelta
from itertools import count

import msgspec
import pytest

from tests.fakes import NOON
from webhook import repeats as repeats_module
from webhook.record import Drift, Record
from webhook.repeats import Repeats

DENIED = Record(
    id="first",
    time="2026-11-23T12:00:00.000Z",
    user="alice",
    operation="UPDATE",
    resource="deployments",
    kind="Deployment",
    namespace="shop",
    name="web",
    verdict="Deny",
    reason="Drift",
    drift=(Drift(".spec.replicas", "3", "5"),),
)


def changed(record=DENIED, **fields):
    return msgspec.structs.replace(record, **fields)


def after(**span):
    return NOON + timedelta(**span)


def make():
    numbers = count(1)
    return Repeats(new_id=lambda: f"new-{next(numbers)}")


def test_the_first_denial_is_new_and_the_next_is_the_same():
    """Whoever gets it learns the id under which the first one is kept."""
    repeats = make()

    found = [repeats.seen(changed(id=i), after(minutes=m)) for i, m in (("first", 0), ("b", 1), ("c", 9.9))]

    assert found == ["", "first", "first"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("user", "bob"),
        ("operation", "DELETE"),
        ("group", "apps"),
        ("resource", "secrets"),
        ("sub_resource", "scale"),
        ("namespace", "other"),
        ("name", "other"),
        ("verdict", "Allow"),
        ("reason", "GrantRefused"),
        ("drift", ()),
        ("drift", (Drift(".spec.replicas", "3", "6"),)),
        ("window", "w"),
        ("detail", "why"),
    ],
)
def test_another_denial_is_another(field, value):
    """Who, what, where and which values all count."""
    repeats = make()
    repeats.seen(DENIED, NOON)

    assert repeats.seen(changed(**{field: value}), NOON) == ""


@pytest.mark.parametrize("field", ["id", "time", "uid", "groups", "until"])
def test_what_differs_from_call_to_call_makes_no_other_denial(field):
    """Each call of the API server has a uid of its own."""
    repeats = make()
    repeats.seen(DENIED, NOON)

    assert repeats.seen(changed(**{field: ("x",) if field == "groups" else "x"}), NOON) == "first"


def test_after_ten_minutes_the_count_is_a_record_of_its_own():
    """It points at the first, whose fields it repeats, and counts what came after it."""
    repeats = make()
    for minute in range(4):
        repeats.seen(DENIED, after(minutes=minute))

    assert repeats.flush(after(minutes=9)) == []
    assert repeats.flush(after(minutes=10)) == [changed(id="new-1", event="review.repeated", count=3, detail="first")]
    assert repeats.flush(after(minutes=20)) == []
    assert repeats.seen(changed(id="again"), after(minutes=20)) == ""


def test_what_came_once_is_not_recorded_twice():
    """No count of nothing."""
    repeats = make()
    repeats.seen(DENIED, NOON)

    assert repeats.flush(after(minutes=10)) == []


def test_no_count_is_lost_where_ten_minutes_are_over():
    """The same denial after ten minutes is new, and what was counted before it is still told."""
    repeats = make()
    repeats.seen(DENIED, NOON)
    repeats.seen(DENIED, after(minutes=1))
    repeats.seen(changed(name="other"), after(minutes=2))

    repeats.seen(changed(id="second"), after(minutes=11))
    told = repeats.flush(after(minutes=12), all_of_them=True)

    assert [(record.detail, record.count) for record in told if record.name == "web"] == [("first", 1)]


def test_everything_is_told_when_the_process_ends():
    """What was only counted so far is not lost."""
    repeats = make()
    for _ in range(3):
        repeats.seen(DENIED, NOON)

    assert [record.count for record in repeats.flush(NOON, all_of_them=True)] == [2]


def test_there_is_a_bound(monkeypatch):
    """The oldest go first, and are told if they were repeated."""
    monkeypatch.setattr(repeats_module, "_MOST", 10)
    repeats = make()
    for number in range(15):
        for _ in range(2):
            repeats.seen(changed(id=f"r{number}", name=f"n{number}"), after(seconds=number))

    told = repeats.flush(after(seconds=20))

    assert [record.detail for record in told] == ["r0", "r1", "r2", "r3", "r4"]


GRANTED = changed(verdict="BreakGlass", reason="Granted", window="w")
OTHER = changed(GRANTED, id="other", drift=(Drift(".spec.replicas", "5", "3"),))


def test_a_granted_change_that_is_asked_about_again_is_the_same():
    """The API server asks again when it meets a conflict."""
    repeats = make()

    assert repeats.granted(GRANTED, NOON) == ""
    assert repeats.granted(changed(GRANTED, id="b"), after(seconds=5)) == "first"


def test_a_granted_change_is_new_after_a_while():
    """Half a minute is longer than one write takes."""
    repeats = make()
    repeats.granted(GRANTED, NOON)

    assert repeats.granted(changed(GRANTED, id="b"), after(seconds=31)) == ""


def test_a_granted_change_is_new_after_another_on_the_same_object():
    """There and back, and there again, are three changes."""
    repeats = make()

    assert [repeats.granted(record, NOON) for record in (GRANTED, OTHER, changed(GRANTED, id="c"))] == ["", "", ""]


def test_changes_of_other_objects_do_not_come_between():
    """Only what happens on the same object matters."""
    repeats = make()
    repeats.granted(GRANTED, NOON)
    repeats.granted(changed(OTHER, name="other"), NOON)

    assert repeats.granted(changed(GRANTED, id="b"), NOON) == "first"


def test_granted_changes_have_a_bound_too(monkeypatch):
    """The oldest is forgotten."""
    monkeypatch.setattr(repeats_module, "_MOST", 3)
    repeats = make()
    for number in range(5):
        repeats.granted(changed(GRANTED, id=f"r{number}", name=f"n{number}"), NOON)

    found = [repeats.granted(changed(GRANTED, id="x", name=f"n{number}"), NOON) for number in (4, 0)]

    assert found == ["r4", ""]

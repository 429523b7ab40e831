"""Grants and sealed stamps: what a stamp says, and that nobody but us can make it say anything else."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.fakes import KEY, NOON, deployment
from webhook import break_glass
from webhook.break_glass import (
    ASK,
    ASK_FOR,
    BY,
    EVERYTHING,
    FIELDS,
    ID,
    LABEL,
    SEAL,
    STAMPS,
    UNTIL,
    ObjectRef,
    Stamp,
    asked,
    deadline,
    grow,
    is_live,
    is_own_path,
    open_stamp,
    parse_time,
    print_time,
    read_stamp,
    seal_of,
    stamp_annotations,
    stamps_changed,
)
from webhook.fields import Change, print_path, within
from webhook.record import new_ulid

LAW = settings(max_examples=100, deadline=None, database=None)
WEB = ObjectRef(group="apps", kind="Deployment", namespace="shop", name="web")
ULID = new_ulid(now=NOON.timestamp)
STAMP = Stamp(id=ULID, by="alice", until=NOON + timedelta(hours=1), fields=(".spec.replicas",))

TEXTS = st.text(max_size=8)
SECONDS = st.integers(100_000, 4_000_000_000)
ULIDS = SECONDS.map(lambda seconds: new_ulid(now=lambda: seconds))
TIMES = SECONDS.map(lambda seconds: datetime.fromtimestamp(seconds, UTC))
REFS = st.builds(ObjectRef, group=TEXTS, kind=TEXTS, namespace=TEXTS, name=TEXTS)
STAMP_VALUES = st.builds(
    Stamp, id=ULIDS, by=TEXTS, until=TIMES, fields=st.lists(TEXTS, max_size=4).map(tuple), write=TEXTS
)


def annotated(found):
    return {"metadata": {"annotations": dict(found)}}


def stamped(stamp=STAMP, ref=WEB, key=KEY, **changed):
    """Return an object with a sealed stamp, and some annotations replaced after that."""
    names = {"id": ID, "by": BY, "until": UNTIL, "fields": FIELDS, "seal": SEAL}
    return annotated({**stamp_annotations(stamp, ref, key), **{names[k]: v for k, v in changed.items()}})


@LAW
@given(STAMP_VALUES, REFS)
def test_a_stamp_survives_a_round_trip(stamp, ref):
    """What is written on an object is read from it."""
    assert read_stamp(stamped(stamp, ref), ref, KEY) == stamp


@LAW
@given(STAMP_VALUES, STAMP_VALUES, REFS, REFS, st.binary(min_size=1), st.binary(min_size=1))
def test_a_seal_fits_nothing_else(stamp, other, ref, other_ref, key, other_key):
    """Another object, id, name, end, list of fields or key has another seal."""
    assume(key.ljust(64, b"\0") != other_key.ljust(64, b"\0"))  # HMAC pads its keys
    seal = seal_of(stamp, ref, key)

    assert seal_of(stamp, ref, other_key) != seal
    if other_ref != ref:
        assert seal_of(stamp, other_ref, key) != seal
    for part in ("id", "by", "until", "fields", "write"):
        changed = replace(stamp, **{part: getattr(other, part)})
        assert (seal_of(changed, ref, key) == seal) == (changed == stamp)


@LAW
@given(st.sampled_from(["group", "kind", "namespace", "name", "id", "by"]), TEXTS, TEXTS)
def test_parts_of_a_seal_do_not_run_into_each_other(part, head, tail):
    """Moving a letter from one part to the next makes another seal."""
    assume(head + tail)
    order = ["group", "kind", "namespace", "name", "id", "by"]
    following = order[(order.index(part) + 1) % len(order)]

    def sealed(values):
        ref = ObjectRef(**{k: values.get(k, "") for k in order[:4]})
        return seal_of(Stamp(id=values.get("id", ""), by=values.get("by", ""), until=NOON, fields=()), ref, KEY)

    assert sealed({part: head + tail}) != sealed({part: head, following: tail}) or not tail


@pytest.mark.parametrize(
    "changed",
    [
        {"id": new_ulid(now=NOON.timestamp)},
        {"by": "bob"},
        {"until": "2026-11-23T14:00:00Z"},
        {"until": "2026-11-23T13:00:00.999Z"},
        {"fields": '[".spec"]'},
        {"fields": '["*"]'},
        {"seal": ""},
        {"seal": "0" * 64},
        {"seal": seal_of(STAMP, WEB, b"another key")},
        {"seal": seal_of(STAMP, replace(WEB, name="other"), KEY)},
        {"seal": "ü"},
        {"id": None},
        {"by": None},
        {"until": None},
        {"fields": None},
        {"seal": None},
    ],
)
def test_a_stamp_that_was_touched_is_none(changed):
    """Whatever is changed by hand, the seal does not fit any more."""
    assert read_stamp(stamped(**changed), WEB, KEY) is None


@LAW
@given(st.dictionaries(st.sampled_from(sorted({*STAMPS, ASK, ASK_FOR})), st.one_of(TEXTS, st.none(), st.integers())))
def test_hostile_annotations_are_no_stamp(found):
    """Annotations may hold anything; nothing is raised."""
    obj = annotated(found)

    assert read_stamp(obj, WEB, KEY) is None
    assert asked(None, obj) is None or isinstance(found[ASK], str)
    assert isinstance(stamps_changed(None, obj), bool)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("id", ""),
        ("id", "short"),
        ("id", "Z" * 26),
        ("id", "u" * 26),
        ("until", ""),
        ("until", "tomorrow"),
        ("until", "2026-11-23T13:00:00"),
        ("until", "9999-12-31T23:59:59-23:59"),
        ("until", "0001-01-01T00:00:00+23:59"),
        ("until", "2026-W48-1T13:00:00Z"),
        ("fields", ""),
        ("fields", "{}"),
        ("fields", "[1]"),
        ("fields", "[" * 100_000),
        ("fields", "null"),
    ],
)
def test_what_is_no_id_no_time_or_no_list_is_no_stamp(part, value):
    """Nothing is raised, and another spelling of the same moment is not what was sealed."""
    assert read_stamp(stamped(**{part: value}), WEB, KEY) is None


def test_a_stamp_says_when_its_window_opened():
    """A ULID begins with its time, to the millisecond."""
    when = datetime(2026, 11, 23, 12, 34, 56, 789_000, tzinfo=UTC)

    assert replace(STAMP, id=new_ulid(now=when.timestamp)).opened == when


@pytest.mark.parametrize(
    ("after", "now", "live"),
    [
        ({ASK: "why"}, NOON, True),
        ({}, NOON, False),
        ({ASK: "why"}, STAMP.until, False),
        ({ASK: "why"}, STAMP.until - timedelta(seconds=1), True),
    ],
)
def test_a_window_is_open_while_the_ask_stands_and_its_time_is_not_up(after, now, live):
    """Either ends it."""
    assert is_live(STAMP, annotated(after), now) is live
    assert not is_live(None, annotated(after), now)


@pytest.mark.parametrize(
    ("before", "after", "ask"),
    [
        ({}, {ASK: "why"}, ("why", None)),
        ({}, {ASK: "why", ASK_FOR: "30m"}, ("why", "30m")),
        ({ASK: "old"}, {ASK: "why"}, ("why", None)),
        ({ASK: "why"}, {ASK: "why", ASK_FOR: "30m"}, ("why", "30m")),
        ({ASK: "why"}, {ASK: "why"}, None),
        ({ASK: "why"}, {}, None),
        ({}, {ASK_FOR: "30m"}, None),
        ({}, {ASK: 7}, None),
        ({}, {ASK: "why", ASK_FOR: 7}, ("why", None)),
        (None, {ASK: "why"}, ("why", None)),
    ],
)
def test_a_write_asks_where_it_adds_or_changes_the_ask(before, after, ask):
    """An old ask opens nothing."""
    old = None if before is None else annotated(before)

    found = asked(old, annotated(after))

    assert (found and (found.reason, found.duration)) == ask


def test_nothing_asks_where_there_is_no_object():
    """A deletion can't ask."""
    assert asked(annotated({ASK: "why"}), None) is None


@pytest.mark.parametrize(
    ("fields", "more", "merged"),
    [
        ((), [], ()),
        ((".a",), [".b"], (".a", ".b")),
        ((".a",), [".a"], (".a",)),
        ((".a",), [".a.b"], (".a",)),
        ((".a.b", ".c"), [".a"], (".c", ".a")),
        ((".a",), ["."], (".",)),
        (("*",), [".a"], ("*",)),
        ((".a",), ["*"], ("*",)),
        ((".a",), [f".{n:0100}" for n in range(200)], ("*",)),
    ],
)
def test_the_fields_of_a_window_grow(fields, more, merged):
    """What lies within a listed field is not listed again; too many are everything."""
    assert grow(replace(STAMP, fields=fields), more).fields == merged


@LAW
@given(st.lists(st.sampled_from([".a", ".a.b", ".a.b.c", ".ab", '.a["x"]', ".c"]), max_size=6))
def test_a_grown_stamp_covers_all_that_it_grew_by(more):
    """Nothing is lost by merging, and growing by the same again changes nothing."""
    once = grow(STAMP, more)

    assert grow(once, more) == once
    assert all(any(within(field, known) for known in once.fields) for field in more)


def test_merging_very_many_fields_is_not_quadratic(monkeypatch):
    """Thousands of fields are everything, and that is seen before each is compared with each."""
    compared = 0

    def counting(path, outer):
        nonlocal compared
        compared += 1
        return path.startswith(outer)

    monkeypatch.setattr(break_glass, "within", counting)

    assert open_stamp(id_=ULID, by="a", until=NOON, fields=[f".field-{n:05}" for n in range(3000)]).fields == ("*",)
    assert compared < 2_000_000


def test_a_path_is_printed_once_to_see_whether_it_is_covered(monkeypatch):
    """Not once for each field of the stamp."""
    printed = 0
    real = print_path

    def counting(path):
        nonlocal printed
        printed += 1
        return real(path)

    monkeypatch.setattr(break_glass, "print_path", counting)
    stamp = replace(STAMP, fields=tuple(f".f{n}" for n in range(100)))

    assert stamp.covers([Change(("f:f99",), 1, 2) for _ in range(10)])
    assert printed == 10


@pytest.mark.parametrize(
    ("fields", "path", "covered", "held"),
    [
        ((".spec.replicas",), ("f:spec", "f:replicas"), True, True),
        ((".spec",), ("f:spec", "f:replicas"), True, True),
        ((".spec.replicas",), ("f:spec",), False, True),
        ((".spec.replicas",), ("f:spec", "f:paused"), False, False),
        ((EVERYTHING,), ("f:x",), True, True),
        ((".",), ("f:odd key",), True, True),
        ((), ("f:x",), False, False),
    ],
)
def test_a_stamp_covers_what_is_listed_and_holds_what_touches_it(fields, path, covered, held):
    """A change of more than is listed is not covered; undoing more than is listed is held."""
    stamp = replace(STAMP, fields=fields)

    assert stamp.covers([Change(path, 1, 2)]) is covered
    assert stamp.holds(Change(path, 1, 2)) is held


@pytest.mark.parametrize(
    ("asked_for", "now", "ends"),
    [(1, 0, 1), (9, 0, 8), (1, 7.5, 8), (1, 2, 3)],
)
def test_a_window_ends_in_time(asked_for, now, ends):
    """However often it is extended, the longest window counts from its opening."""
    hours = [timedelta(hours=n) for n in (asked_for, now, ends)]

    assert deadline(NOON, hours[0], NOON + hours[1], timedelta(hours=8)) == NOON + hours[2]


def test_times_are_printed_in_utc_and_read_with_their_zone():
    """A time without a zone is none."""
    assert print_time(parse_time("2026-11-23T14:00:00+02:00")) == "2026-11-23T12:00:00Z"
    with pytest.raises(ValueError, match="time zone"):
        parse_time("2026-11-23T14:00:00")


def test_stamps_and_label_are_ours():
    """Everything with our prefix is; an annotation of the Deployment itself is not."""
    obj = deployment()
    labelled = {**obj, "metadata": {**obj["metadata"], "labels": {LABEL: "active"}}}

    assert is_own_path(("f:metadata", "f:annotations", "f:" + SEAL))
    assert is_own_path(("f:metadata", "f:labels", "f:" + LABEL))
    assert not is_own_path(("f:metadata", "f:annotations", "f:driftgate.dev/source"))
    assert stamps_changed(obj, labelled)
    assert not stamps_changed(obj, obj)
    assert not stamps_changed(obj, {"metadata": {"annotations": {ASK: "why"}}})

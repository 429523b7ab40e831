"""Field paths and field sets: the laws of comparing, of FieldsV1 and of printing."""

import copy
import json
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from webhook import fields
from webhook.errors import UndecodableFields
from webhook.fields import (
    ABSENT,
    MAX_DEPTH,
    Change,
    FieldsV1,
    canonical,
    changes,
    covers,
    fields_v1,
    leaves,
    overlap,
    print_path,
    value_at,
    within,
)

LAW = settings(max_examples=60, deadline=None, database=None)

HOSTILE = [
    "",
    ".",
    "a.b",
    'a"b',
    "a]b",
    "[",
    "]",
    '"]',
    "a\nb",
    "a\x1b[2J",
    "f:a",
    "=",
    "a=1,b",
    "\u202e",
    "é",
    "-",
    "1",
]
KEYS = st.sampled_from(["a", "b", "name", "x-y", *HOSTILE])
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-2, 2), st.text(max_size=3), st.floats(-2, 2))
JSON = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(KEYS, inner, max_size=4),
        st.lists(st.builds(lambda name, more: {**more, "name": name}, KEYS, st.dictionaries(KEYS, inner, max_size=2))),
    ),
    max_leaves=8,
)
OBJECTS = st.dictionaries(KEYS, JSON, max_size=3)

NAMED: FieldsV1 = {"k:" + canonical({"name": n}): {} for n in ("a", "b")}
SETS: FieldsV1 = {'v:"x"': {}}


def shuffled(value, order):
    """Return the same value with the keys of its maps in another order."""
    if isinstance(value, dict):
        items = [(key, shuffled(inner, order)) for key, inner in value.items()]
        return dict(sorted(items, key=lambda item: order(item[0])))
    return [shuffled(inner, order) for inner in value] if isinstance(value, list) else value


@LAW
@given(OBJECTS)
def test_an_object_does_not_differ_from_itself(obj):
    """Equal objects have no changes, whatever the order of their keys."""
    assert not list(changes(obj, copy.deepcopy(obj)))
    assert not list(changes(obj, shuffled(obj, lambda key: key)))


@LAW
@given(OBJECTS, OBJECTS)
def test_whatever_differs_shows(old, new):
    """Objects that differ as JSON have at least one change: true is not 1, and an order that changed is a change."""
    assume(canonical(old) != canonical(new))

    assert list(changes(old, new))


@pytest.mark.parametrize(("old", "new"), [(1, True), (0, False), (True, 1), ([1], [True]), ({"b": 0}, {"b": False})])
def test_a_number_is_no_truth_value(old, new):
    """JSON tells 1 from true, and so do templates: a HelmRelease's values hold either."""
    assert list(changes({"a": old}, {"a": new}))


@LAW
@given(OBJECTS, OBJECTS)
def test_the_order_of_keys_never_matters(old, new):
    """Maps have no order."""
    found = {(change.path, canonical_or_absent(change.before)) for change in changes(old, new)}

    again = changes(shuffled(old, lambda key: key[::-1]), shuffled(new, lambda key: key))

    assert {(change.path, canonical_or_absent(change.before)) for change in again} == found


def canonical_or_absent(value):
    return value if value is ABSENT else canonical(value)


@LAW
@given(OBJECTS, OBJECTS)
def test_every_change_can_be_looked_up(old, new):
    """At the path of a change stands what the change says stood there, and what stands there now."""
    for change in changes(old, new):
        for obj, said in ((old, change.before), (new, change.after)):
            found = value_at(obj, change.path)
            if not _is_order(change, old):
                assert canonical_or_absent(found) == canonical_or_absent(said)


def _is_order(change, old):
    """A change of order is told by the names of the items."""
    found = value_at(old, change.path)
    return isinstance(found, list) and found != change.before


@LAW
@given(OBJECTS, OBJECTS)
def test_no_place_is_told_twice(old, new):
    """Each place has one change at most, and a change of a list's order is the only one above others."""
    paths = [change.path for change in changes(old, new)]

    assert len(paths) == len(set(paths))


PATHS = st.lists(
    st.one_of(
        KEYS.map(lambda key: "f:" + key),
        st.dictionaries(KEYS, SCALARS, min_size=1, max_size=2).map(lambda keys: "k:" + canonical(keys)),
        SCALARS.map(lambda value: "v:" + canonical(value)),
        st.integers(0, 9).map(lambda index: f"i:{index}"),
    ),
    max_size=4,
).map(tuple)


@LAW
@given(st.sets(PATHS.filter(bool), max_size=6))
def test_a_field_set_survives_a_round_trip(paths):
    """FieldsV1 names exactly the paths that it was made of."""
    made = fields_v1(paths)

    assert sorted(leaves(made)) == sorted(paths)
    assert fields_v1(leaves(json.loads(json.dumps(made)))) == made


@LAW
@given(PATHS, PATHS)
def test_distinct_paths_print_differently(one, other):
    """A printed path stands for one path only, however hostile its keys are."""
    assume(one != other)

    assert print_path(one) != print_path(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("f:a.b",), ("f:a", "f:b")),
        (('f:a"]["b',), ("f:a", "f:b")),
        (('v:"x"',), ('k:{"":"x"}',)),
        (('k:{"a":1,"b":2}',), ('k:{"a=1,b":2}',)),
        (("i:0",), ("f:0",)),
        (("f:a\n",), ("f:a",)),
        (("f:",), ()),
    ],
)
def test_hostile_keys_print_like_nothing_else(one, other):
    """Quotes, brackets, dots and equal signs in a key can't make it look like another path."""
    assert print_path(one) != print_path(other)
    assert "\n" not in print_path(one)


@pytest.mark.parametrize(
    ("path", "printed"),
    [
        ((), "."),
        (("f:spec", "f:replicas"), ".spec.replicas"),
        (("f:spec", "f:containers", 'k:{"name":"web"}', "f:image"), '.spec.containers[name="web"].image'),
        (("f:ports", 'k:{"containerPort":80,"protocol":"TCP"}'), '.ports[containerPort=80,protocol="TCP"]'),
        (("f:metadata", "f:finalizers", 'v:"a/b"'), '.metadata.finalizers[="a/b"]'),
        (("f:metadata", "f:annotations", "f:a/b.c"), '.metadata.annotations["a/b.c"]'),
        (("f:args", "i:2"), ".args[2]"),
    ],
)
def test_a_path_is_printed_as_kubectl_prints_it(path, printed):
    """People can paste a path into a jsonpath or a configuration."""
    assert print_path(path) == printed


@LAW
@given(PATHS, PATHS, PATHS)
def test_within_follows_the_paths(outer, more, other):
    """A printed path lies within another exactly where the path begins with the other."""
    assert within(print_path(outer + more), print_path(outer))
    assert overlap(print_path(outer), print_path(outer + more))
    assert overlap(print_path(outer + more), print_path(outer))
    starts = other[: len(outer)] == outer
    assert within(print_path(other), print_path(outer)) == starts
    assert overlap(print_path(other), print_path(outer)) == (starts or outer[: len(other)] == other)


@pytest.mark.parametrize(
    ("path", "outer", "is_within"),
    [
        (".spec.replicas", ".spec", True),
        (".spec.replicas", ".spec.replicas", True),
        (".spec.replicasMost", ".spec.replicas", False),
        ('.spec["a"]', ".spec", True),
        (".spec", ".spec.replicas", False),
        (".spec", ".", True),
        ('["odd key"].x', ".", True),
        (".", ".spec", False),
    ],
)
def test_what_lies_below_a_path_is_within_it(path, outer, is_within):
    """`.spec` holds `.spec.replicas`, not `.specX`; the whole object holds everything."""
    assert within(path, outer) is is_within


def told(old, new, *owned):
    """Return the printed paths of the changes in the field `.list`."""
    found = changes({"list": old}, {"list": new}, [{"f:list": one} for one in owned])
    return [print_path(change.path).removeprefix(".list") for change in found]


A, B, B2 = {"name": "a", "v": 1}, {"name": "b", "v": 1}, {"name": "b", "v": 2}
PORT, PORT_UDP = {"port": 53, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}
PORTS: FieldsV1 = {"k:" + canonical(PORT): {}}


@pytest.mark.parametrize(
    ("old", "new", "owned", "paths"),
    [
        ([A, B], [A, B2], [], ['[name="b"].v']),
        ([A], [A, B], [], ['[name="b"]']),
        ([A, B], [B], [], ['[name="a"]']),
        ([A, B], [B, A], [], [""]),
        ([A, B], [B2, A], [], ['[name="b"].v', ""]),
        ([A, A], [A], [], [""]),
        ([A], [A, A], [NAMED], [""]),
        ([A, B], [A, B2], [NAMED], ['[name="b"].v']),
        ([PORT], [PORT, PORT_UDP], [PORTS], ['[port=53,protocol="UDP"]']),
        ([PORT], [PORT, PORT_UDP], [], [""]),
        ([{**PORT, "name": "d"}], [{**PORT, "name": "e"}], [PORTS], ['[port=53,protocol="TCP"].name']),
        ([{"name": "a"}, {"nome": "b"}], [{"name": "a"}], [], [""]),
        (["x", "y"], ["x"], [SETS], ['[="y"]']),
        (["x", "y"], ["y", "x"], [SETS], [""]),
        (["x"], ["x", "x"], [SETS], [""]),
        (["x", "y"], ["x"], [], [""]),
        ([], [A, B], [], ['[name="a"]', '[name="b"]']),
        ([], ["x"], [], [""]),
        ([A], None, [], [""]),
        ([A], {"name": "a"}, [], [""]),
        ([A], [A, B], [{"i:0": {}}], ['[name="b"]']),
    ],
)
def test_lists_are_compared_as_the_api_server_merges_them(old, new, owned, paths):
    """Items are known by merge key or value where managedFields says so, by `name` where nothing does, else whole."""
    assert told(old, new, *owned) == paths


def test_absent_null_and_empty_are_three_things():
    """A field that is not there is neither null nor empty."""
    values: list[Any] = [ABSENT, None, {}, [], "", 0, False]

    for one in values:
        for other in values:
            old = {} if one is ABSENT else {"a": one}
            new = {} if other is ABSENT else {"a": other}
            assert bool(list(changes(old, new))) == (one is not other)


def chain(depth, end):
    for _ in range(depth):
        end = {"a": end}
    return end


@pytest.mark.parametrize("depth", [MAX_DEPTH - 1, MAX_DEPTH, MAX_DEPTH + 1, 300])
def test_below_the_greatest_depth_a_branch_is_one_change(depth):
    """Nesting never hides a change: it is told where it is, or at the greatest depth."""
    (change,) = changes(chain(depth, {"x": 1}), chain(depth, {"x": 2}))

    assert len(change.path) == min(depth + 1, MAX_DEPTH)


@pytest.mark.parametrize(
    ("change", "is_covered"),
    [
        (Change(("f:spec", "f:replicas"), 1, 2), True),
        (Change(("f:spec", "f:replicas", "f:deeper"), 1, 2), True),
        (Change(("f:spec",), {}, ABSENT), True),
        (Change(("f:spec", "f:paused"), 1, 2), False),
        (Change(("f:spec", "f:list", 'k:{"name":"a"}', "f:v"), 1, 2), True),
        (Change(("f:spec", "f:list", 'k:{"name":"b"}'), ABSENT, {}), False),
        (Change(("f:spec", "f:list"), [], [1]), True),
        (Change((), {}, ABSENT), True),
        (Change(("f:data",), {}, ABSENT), False),
    ],
)
def test_a_field_set_covers_the_field_a_part_of_it_and_all_around_it(change, is_covered):
    """A leaf owns all below it; to change a map as a whole is to change what is owned in it."""
    owned: FieldsV1 = {"f:spec": {"f:replicas": {}, "f:list": {'k:{"name":"a"}': {".": {}, "f:name": {}, "f:v": {}}}}}

    assert covers(owned, change) is is_covered
    assert covers({}, change) is (change.path == ())


@pytest.mark.parametrize(
    "path", [("k:no JSON",), ("k:[1]",), ("k:7",), ("v:{",), ("x:y",), ("",), ("k:" + "[" * 5000,)]
)
def test_a_path_that_is_none_finds_nothing_or_is_undecodable(path):
    """managedFields can hold anything; nothing but UndecodableFields comes of it."""
    try:
        assert value_at([{"name": "a"}], path) is ABSENT
    except UndecodableFields as error:
        assert str(error)  # noqa: PT017 -- either is right


@pytest.mark.parametrize("owned", [{"f:list": 1}, {"f:list": {"k:no JSON": {}}}, {"f:list": {"k:7": {}}}])
def test_managed_fields_that_cannot_be_read_are_said_to_be(owned):
    """A FieldsV1 that is none is no reason for a stack trace."""
    with pytest.raises(UndecodableFields, match="managedFields"):
        list(changes({"list": [A]}, {"list": [B]}, [owned]))


@pytest.mark.parametrize("owned", [{"f:a": 1}, {"what": {}}, {"f:a": {"": {}}}])
def test_leaves_of_no_field_set_are_undecodable(owned):
    """Only `f:`, `k:`, `v:`, `i:` and `.` stand in FieldsV1."""
    with pytest.raises(UndecodableFields, match="managedFields"):
        list(leaves(owned))


def test_leaves_are_no_deeper_than_objects_are_told_apart():
    """Many leaves at the end of a long chain would be as many long paths in memory."""
    inner: dict[str, Any] = {f"f:{n}": {} for n in range(10)}
    for _ in range(300):
        inner = {"f:a": inner}

    try:
        longest = max(map(len, leaves(inner)), default=0)
    except UndecodableFields:
        return
    assert longest <= 2 * MAX_DEPTH


class Counted:
    """Counts how often a function of `fields` is called."""

    def __init__(self, monkeypatch, name):
        self.calls = 0
        real = getattr(fields, name)

        def counting(*args):
            self.calls += 1
            return real(*args)

        monkeypatch.setattr(fields, name, counting)


def test_comparing_is_linear_in_the_size(monkeypatch):
    """A deep chain with a mebibyte at its end costs one look at each changed field, and names each item once."""
    count = 25_000
    old = chain(MAX_DEPTH - 2, {f"key-{n:06}": "x" * 8 for n in range(count)})
    new = chain(MAX_DEPTH - 2, {f"key-{n:06}": "y" * 8 for n in range(count)})
    looked_at = Counted(monkeypatch, "changes")

    found = list(changes(old, new))

    assert len(found) == count
    assert looked_at.calls <= count + MAX_DEPTH


def test_many_managers_name_a_list_no_more_often_than_one(monkeypatch):
    """Who owns a list a hundred times over makes nobody compare it a hundred times: managedFields is the user's."""
    items = [{"name": f"n{n}"} for n in range(200)]
    named = Counted(monkeypatch, "canonical")

    list(changes({"l": [*items, items[0]]}, {"l": [*items, items[1]]}, [{"f:l": NAMED} for _ in range(100)]))

    assert named.calls < 2000


def test_many_managers_are_not_asked_about_every_field(monkeypatch):
    """Looking up who owns a changed field must not cost a look at each of a thousand managers."""
    looked_up = 0

    class Watched(dict[str, Any]):
        def get(self, *args):
            nonlocal looked_up
            looked_up += 1
            return super().get(*args)

    owned = [Watched({"f:data": Watched()}) for _ in range(300)]

    list(changes({"data": dict.fromkeys(map(str, range(300)), 1)}, {"data": {}}, owned))

    assert looked_up < 10_000

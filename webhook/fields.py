"""Field paths and field sets: compare two objects, look a path up in FieldsV1, print it as kubectl would.

A path is a tuple of the elements that FieldsV1 itself uses: `f:replicas` for a map key, `k:{"name":"web"}` for a list
item by merge key, `v:"x"` for an item of a set. A field set is the nested JSON of FieldsV1, walked as it is: nothing
is expanded that nobody asks for.

No schema is loaded. Which lists have merge keys is read from managedFields, where the API server wrote it down; both
objects come defaulted and in one version, so comparing them is enough. Easy to get wrong: whatever differs must show
up in `changes`, however oddly it is shaped: a list that can't be keyed is compared whole, an order that changed is a
change, and below `MAX_DEPTH` the whole branch is one change.

Format: Kubernetes API conventions, "FieldsV1"; structured-merge-diff, fieldpath.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

import msgspec

from webhook.errors import UndecodableFields

Path = tuple[str, ...]
FieldsV1 = dict[str, Any]

MAX_DEPTH = 64
"""Levels that are told apart; deeper branches are compared whole, so that no object costs more than its size."""


class Absent(Enum):
    """The value of a field that is not there, which is neither null nor empty."""

    ABSENT = "(absent)"


ABSENT: Final = Absent.ABSENT


@dataclass(frozen=True, slots=True)
class Change:
    """One field that a write changes. `before` and `after` are decoded JSON, or ABSENT."""

    path: Path
    before: Any
    after: Any


def changes(old: Any, new: Any, owned: Sequence[FieldsV1] = (), at: Path = ()) -> Iterator[Change]:
    """Yield the fields in which `new` differs from `old`, outermost first; nothing if they are equal.

    `owned` holds the FieldsV1 that belong to this place (of every manager): they say which lists have keys. Maps are
    told apart down to their leaves, also where they are wholly new; list items that come or go are one change.
    """
    if old == new and _alike(old, new):
        return
    if len(at) < MAX_DEPTH and _both(dict, old, new):
        yield from _map_changes(old, new, owned, at)
    elif len(at) < MAX_DEPTH and _both(list, old, new):
        yield from _list_changes(old, new, owned, at)
    else:
        yield Change(at, old, new)


def _both(kind: type, old: Any, new: Any) -> bool:
    """Tell whether both are maps (or lists), where one that comes or goes with something in it stands for its parts."""
    if isinstance(old, kind):
        return isinstance(new, kind) or (new is ABSENT and bool(old))
    return old is ABSENT and isinstance(new, kind) and bool(new)


def _map_changes(old: Any, new: Any, owned: Sequence[FieldsV1], at: Path) -> Iterator[Change]:
    before: dict[str, Any] = {} if old is ABSENT else old
    after: dict[str, Any] = {} if new is ABSENT else new
    for key in [*before, *(key for key in after if key not in before)]:
        was, becomes = before.get(key, ABSENT), after.get(key, ABSENT)
        if was != becomes or not _alike(was, becomes):
            element = "f:" + key
            inner = below(owned, element) if isinstance(was, dict | list) or isinstance(becomes, dict | list) else ()
            yield from changes(was, becomes, inner, (*at, element))


def _alike(one: Any, other: Any) -> bool:
    """Tell equal values apart as JSON does: to Python 1, 1.0 and True are equal."""
    if type(one) is str:
        return True
    if isinstance(one, dict | list):
        return bool(_plain.encode(one) == _plain.encode(other)) or canonical(one) == canonical(other)
    return type(one) is type(other)


def below(owned: Iterable[FieldsV1], element: str) -> list[FieldsV1]:
    """Return what `owned` says about the field `element`."""
    found = []
    for fields in owned:
        child = fields.get(element)
        if child is None:
            continue
        if not isinstance(child, dict):
            raise UndecodableFields(f"managedFields can't be read: {element[:80]!r} holds no set of fields")
        found.append(child)
    return found


def _list_changes(old: Any, new: Any, owned: Sequence[FieldsV1], at: Path) -> Iterator[Change]:
    items, new_items = [] if old is ABSENT else old, [] if new is ABSENT else new
    before = after = None
    for naming in _namings(items, new_items, owned):
        before, after = _by_element(items, naming), _by_element(new_items, naming)
        if before is not None and after is not None:
            break
    if before is None or after is None:
        yield Change(at, old, new)
        return
    for element, was in before.items():
        becomes = after.get(element, ABSENT)
        if becomes is ABSENT:
            yield Change((*at, element), was, ABSENT)
        else:
            yield from changes(was, becomes, below(owned, element), (*at, element))
    for element, becomes in after.items():
        if element not in before:
            yield Change((*at, element), ABSENT, becomes)
    if [e for e in before if e in after] != [e for e in after if e in before]:
        yield Change(at, [_item_name(element) for element in before], [_item_name(element) for element in after])


def _item_name(element: str) -> Any:
    """Return what people call a list item: its key if it has but one, or its value."""
    named = json.loads(element[2:])
    return next(iter(named.values())) if element[:2] == "k:" and len(named) == 1 else named


def _namings(old: list[Any], new: list[Any], owned: Sequence[FieldsV1]) -> Iterator[tuple[str, ...]]:
    """Yield the ways to name the items of a list, best first: merge keys, `()` for a set; none if it is atomic."""
    known: set[tuple[str, ...]] = set()
    for fields in owned:
        element = next((e for e in fields if e[:2] in {"k:", "v:"}), None)
        naming = () if element is None or element[:2] == "v:" else _merge_keys(element)
        if element is not None and naming not in known:
            known.add(naming)
            yield naming
    if not known and all(isinstance(item, dict) and isinstance(item.get("name"), str) for item in (*old, *new)):
        yield ("name",)


def _merge_keys(element: str) -> tuple[str, ...]:
    try:
        return tuple(sorted(json.loads(element[2:])))
    except (ValueError, TypeError, RecursionError):
        raise UndecodableFields(f"managedFields can't be read: {element[:80]!r} names no list item") from None


def _by_element(items: list[Any], naming: tuple[str, ...]) -> dict[str, Any] | None:
    """Return the items by path element, in order; None if two share one, or one can't be named this way."""
    named: dict[str, Any] = {}
    for item in items:
        if naming:
            if not isinstance(item, dict) or any(key not in item for key in naming):
                return None
            element = "k:" + canonical({key: item[key] for key in naming})
        else:
            element = "v:" + canonical(item)
        if element in named:
            return None
        named[element] = item
    return named


_canonical = msgspec.json.Encoder(order="sorted")
_plain = msgspec.json.Encoder()


def canonical(value: Any) -> str:
    """Return `value` as JSON without spaces, keys sorted, as FieldsV1 writes it."""
    return _canonical.encode(value).decode()


def covers(fields: FieldsV1, change: Change) -> bool:
    """Tell whether the field set owns anything that `change` touches: the field, a part of it, or all around it."""
    node = fields
    for element in change.path:
        found = below([node], element)
        if not found:
            return not node and bool(fields)  # a leaf that owns all below it: an atomic list or map
        node = found[0]
    return True


def leaves(fields: FieldsV1, at: Path = ()) -> Iterator[Path]:
    """Yield the paths that a field set names, each where FieldsV1 has an empty set or a `.`."""
    if (not fields and at) or "." in fields or len(at) > MAX_DEPTH:
        yield at
    for element, child in fields.items() if len(at) <= MAX_DEPTH else ():
        if element != ".":
            if not isinstance(child, dict) or element[:2] not in {"f:", "k:", "v:", "i:"}:
                raise UndecodableFields(f"managedFields can't be read at {element[:80]!r}")
            yield from leaves(child, (*at, element))


def present(fields: FieldsV1, obj: Any, at: Path = ()) -> Iterator[Path]:
    """Yield the paths of a field set that are there in `obj`; each list is read once, however many items are named."""
    if obj is ABSENT or len(at) > MAX_DEPTH:
        return
    if (not fields and at) or "." in fields:
        yield at
    items: dict[tuple[str, ...], dict[str, Any] | None] = {}
    for element, child in fields.items():
        if element == ".":
            continue
        if not isinstance(child, dict) or element[:2] not in {"f:", "k:", "v:", "i:"}:
            raise UndecodableFields(f"managedFields can't be read at {element[:80]!r}")
        if element[:2] == "f:":
            inside = obj.get(element[2:], ABSENT) if isinstance(obj, dict) else ABSENT
        elif element[:2] == "i:" or not isinstance(obj, list):
            inside = ABSENT
        else:
            naming = () if element[:2] == "v:" else _merge_keys(element)
            if naming not in items:
                items[naming] = _by_element(obj, naming)
            named = items[naming]
            if named is None:  # items that can't be told apart: what is owned in the list counts as there
                yield from leaves(child, (*at, element))
                continue
            inside = named.get(element, ABSENT)
        yield from present(child, inside, (*at, element))


def fields_v1(paths: Iterable[Path]) -> FieldsV1:
    """Return the field set that names `paths`: the inverse of `leaves`."""
    root: FieldsV1 = {}
    ends: list[FieldsV1] = []
    for path in paths:
        node = root
        for element in path:
            node = node.setdefault(element, {})
        ends.append(node)
    for node in ends:
        if node:
            node["."] = {}
    return root


class Finder:
    """Looks up paths in one object; each list is read once for each way to name its items."""

    def __init__(self, obj: Any) -> None:
        self._obj = obj
        self._lists: dict[tuple[int, tuple[str, ...] | None], _Named] = {}

    def value_at(self, path: Path) -> Any:
        """Return the value at `path`, or ABSENT. A list item is found by its key, where absent keys match anything."""
        obj = self._obj
        for element in path:
            kind, name = element[:2], element[2:]
            if kind == "f:" and isinstance(obj, dict):
                obj = obj.get(name, ABSENT)
            elif kind in {"k:", "v:"} and isinstance(obj, list):
                obj = self._item(obj, kind, name)
            else:
                return ABSENT
            if obj is ABSENT:
                return ABSENT
        return obj

    def _item(self, items: list[Any], kind: str, name: str) -> Any:
        try:
            key = json.loads(name)
        except (ValueError, RecursionError):
            return ABSENT
        if kind == "k:" and not isinstance(key, dict):
            return ABSENT
        names = tuple(sorted(key)) if kind == "k:" else None
        named = self._lists.get((id(items), names))
        if named is None:
            named = self._lists[id(items), names] = _named(items, names)
        fits = named.get(names, {}).get(canonical(key)) or [
            item
            for there, by_key in named.items()
            for item in by_key.get(canonical({name: key[name] for name in there or ()}), ())
        ]
        return fits[0] if len(fits) == 1 or (fits and kind == "v:") else ABSENT


_Named = dict[tuple[str, ...] | None, dict[str, list[Any]]]
"""Items by which of the keys they have, and by their values; under None whole, as items of a set."""


def _named(items: list[Any], names: tuple[str, ...] | None) -> _Named:
    found: _Named = {}
    for item in items:
        if names is None:
            found.setdefault(None, {}).setdefault(canonical(item), []).append(item)
        elif isinstance(item, dict):
            there = tuple(name for name in names if name in item)
            element = canonical({name: item[name] for name in there})
            found.setdefault(there, {}).setdefault(element, []).append(item)
    return found


def value_at(obj: Any, path: Path) -> Any:
    """Return the value at `path` in `obj`, or ABSENT."""
    return Finder(obj).value_at(path)


_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*\Z")


def print_path(path: Path) -> str:
    """Return the path as kubectl prints it: `.spec.containers[name="web"].image`; the whole object is `.`."""
    parts = []
    for element in path:
        kind, name = element[:2], element[2:]
        if kind == "f:":
            parts.append(f".{name}" if _PLAIN.match(name) else f"[{canonical(name)}]")
        elif kind == "k:":
            pairs = ",".join(
                f"{key if _PLAIN.match(key) else canonical(key)}={canonical(value)}"
                for key, value in json.loads(name).items()
            )
            parts.append(f"[{pairs}]")
        else:
            parts.append(f"[={name}]" if kind == "v:" else f"[{name}]")
    return "".join(parts) or "."


def within(path: str, outer: str) -> bool:
    """Tell whether the printed `path` is `outer` or lies below it."""
    return outer == "." or (path.startswith(outer) and (len(path) == len(outer) or path[len(outer)] in ".["))


def overlap(path: str, other: str) -> bool:
    """Tell whether one of two printed paths is the other or lies below it."""
    return within(path, other) or within(other, path)

"""Which fields Git declares, and with what value: managedFields, and the last-applied annotation.

Two sources, read from the OLD object: the fieldsV1 sets of the tool's own entries say which fields it wrote; the
last-applied annotation says with what value. Easy to get wrong: unknown is not nothing. A tool without an entry (the
object is older than its field manager, or somebody wiped it) declares we don't know what.

Format: Kubernetes API conventions, "FieldsV1"; kubectl, "last-applied-configuration".
"""

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import msgspec

from webhook.admission import Object, annotations, metadata
from webhook.errors import UndecodableFields
from webhook.fields import ABSENT, Change, FieldsV1, Path, covers, leaves, value_at
from webhook.managed import ManagedBy, annotation_path

LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
LAST_APPLIED_PATH = annotation_path(LAST_APPLIED)
MANAGED_FIELDS_PATH: Path = ("f:metadata", "f:managedFields")

_ANCIENT = "ancient-changes"
"""The manager to which the server folds old entries when more than ten have written."""

_json = msgspec.json.Decoder()


_MOST_MANAGERS = 32


def owned_fields(obj: Object | None) -> list[FieldsV1]:
    """Return the FieldsV1 of the managers of `obj` whose entries are of the object's own version.

    They serve to name list items; more managers than a sane object has would make each look-up dear, and are left out.
    Raises UndecodableFields if managedFields is no list of entries.
    """
    return [fields for _, fields in islice(_entries(obj), _MOST_MANAGERS)]


def declared_fields(obj: Object | None, managed: Sequence[ManagedBy]) -> list[FieldsV1] | None:
    """Return what the tools' own entries declare; None if none of them has one: unknown, which is not nothing."""
    managers = frozenset().union(*(m.tool.field_managers for m in managed))
    found = [fields for manager, fields in _entries(obj) if manager in managers]
    return found or None


def _entries(obj: Object | None) -> Iterable[tuple[str, FieldsV1]]:
    entries = metadata(obj).get("managedFields")
    if entries is None or obj is None:
        return
    if not isinstance(entries, list):
        raise UndecodableFields("metadata.managedFields is no list")
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("fieldsV1", {}), dict):
            raise UndecodableFields("an entry of metadata.managedFields is no map with fieldsV1")
        if entry.get("apiVersion") == obj.get("apiVersion") and not entry.get("subresource"):
            yield str(entry.get("manager")), entry.get("fieldsV1", {})


def is_declared(declared: Sequence[FieldsV1], change: Change) -> bool:
    """Tell whether one of the field sets owns what `change` touches."""
    return any(covers(fields, change) for fields in declared)


def wiped_fields(
    old: Object, new: Object, managed: Sequence[ManagedBy], changed: Sequence[Change]
) -> tuple[Change, ...]:
    """Return a change of managedFields if the tools' entries lost fields whose values stayed as they were.

    Whoever changes a value becomes its owner, and the server folds old entries into `ancient-changes`: neither is a
    wipe.
    """
    managers = frozenset().union(*(m.tool.field_managers for m in managed))
    before = [fields for manager, fields in _entries(old) if manager in managers]
    after = [fields for manager, fields in _entries(new) if manager in managers or manager == _ANCIENT]
    if before == after or not before:
        return ()
    kept = {path for fields in after for path in leaves(fields)}
    touched = {change.path for change in changed}
    kept |= {path[:end] for path in touched for end in range(len(path))}
    lost = [
        path
        for fields in before
        for path in leaves(fields)
        if path not in kept and not _is_below(path, touched) and value_at(new, path) is not ABSENT
    ]
    return (Change(MANAGED_FIELDS_PATH, f"{len(lost)} fields of Git's", ABSENT),) if lost else ()


def _is_below(path: Path, touched: set[Path]) -> bool:
    return any(path[:end] in touched for end in range(len(path) + 1))


def last_applied(obj: Object | None) -> Object | None:
    """Return the manifest in the last-applied annotation of `obj`; None if there is none, or it is no object."""
    text = annotations(obj).get(LAST_APPLIED)
    if not isinstance(text, str):
        return None
    try:
        manifest = _json.decode(text)
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return None
    return manifest if isinstance(manifest, dict) else None


def last_applied_follows(old: Object, new: Object) -> bool:
    """Tell whether the last-applied annotation of `new` says no more than `old` did, or than was true already.

    Applying the same manifest by hand rewrites it, or adds it where a server-side apply had left none.
    """
    manifest = last_applied(new)
    if manifest is None:
        return False
    before = last_applied(old)
    if before is None:
        return LAST_APPLIED not in annotations(old) and _part_of(manifest, old)
    return bool(_without_empty(manifest) == _without_empty(before))


def _part_of(manifest: Any, live: Any) -> bool:
    """Tell whether all that `manifest` states is so in `live`; empty and absent count as one."""
    if isinstance(manifest, dict):
        if not isinstance(live, dict):
            return not _without_empty(manifest)
        return all(_part_of(value, live.get(key)) for key, value in manifest.items())
    if isinstance(manifest, list):
        if not isinstance(live, list) or len(manifest) != len(live):
            return not manifest and not live
        return all(_part_of(value, item) for value, item in zip(manifest, live, strict=True))
    return bool(manifest == live)


def _without_empty(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {key: _without_empty(inner) for key, inner in value.items()}
        return {key: inner for key, inner in kept.items() if inner is not None and inner != {}}
    if isinstance(value, list):
        return [_without_empty(inner) for inner in value]
    return value


_NOT_IN_MANIFESTS = frozenset({"f:finalizers", "f:ownerReferences", "f:managedFields"})


def takes_declared_value(change: Change, manifest: Object) -> bool:
    """Tell whether `change` sets a field to exactly what Git's manifest says, also where that is nothing.

    Metadata that manifests hardly ever hold is the cluster's: that Git says nothing of it gives no leave to wipe it.
    """
    if change.path[:1] == ("f:metadata",) and _NOT_IN_MANIFESTS.intersection(change.path[1:2]):
        return False
    return bool(value_at(manifest, change.path) == change.after)

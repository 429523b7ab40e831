"""Which fields Git declares, and with what value: managedFields, and the last-applied annotation.

Two sources, read from the OLD object: the fieldsV1 sets of the tool's own entries say which fields it wrote; the
last-applied annotation says with what value. Easy to get wrong: unknown is not nothing. A tool without an entry (the
object is older than its field manager, or somebody wiped it) declares we don't know what.

Format: Kubernetes API conventions, "FieldsV1"; kubectl, "last-applied-configuration".
"""

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from itertools import islice
from typing import Any

import msgspec

from webhook.admission import Object, annotations, metadata
from webhook.errors import UndecodableFields
from webhook.fields import ABSENT, Change, FieldsV1, Finder, Path, covers, leaves, present
from webhook.managed import KUBECTL, ManagedBy, annotation_path

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
    return [entry.fields for entry in islice(_entries(obj), _MOST_MANAGERS)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """What Git declares: field sets of the tools' entries, and the manifest that was applied on the client's side."""

    fields: Sequence[FieldsV1]
    manifest: Object | None
    finder: Finder

    def states(self, change: Change) -> bool:
        """Tell whether Git states anything that `change` touches."""
        if any(covers(fields, change) for fields in self.fields):
            return True
        return self.manifest is not None and self.finder.value_at(change.path) is not ABSENT


def declared_by(obj: Object | None, managed: Sequence[ManagedBy]) -> Declared | None:
    """Return what the tools declare on `obj`; None if that is not known, which is not the same as nothing.

    An entry that the server folded into `ancient-changes` counts where the tool has nothing else.
    """
    managers = _managers(managed)
    entries = list(_entries(obj))
    fields = [entry.fields for entry in entries if entry.manager in managers]
    manifest = last_applied(obj)
    if not fields and manifest is None:
        fields = [entry.fields for entry in entries if entry.is_folded]
    if not fields and manifest is None:
        return None
    return Declared(fields=fields, manifest=manifest, finder=Finder(manifest))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    manager: str
    operation: str
    fields: FieldsV1

    @property
    def is_folded(self) -> bool:
        return self.manager == _ANCIENT and self.operation == "Update"


def _managers(managed: Sequence[ManagedBy]) -> frozenset[str]:
    return frozenset().union(*(m.tool.field_managers for m in managed))


def _entries(obj: Object | None) -> Iterator[_Entry]:
    entries = metadata(obj).get("managedFields")
    if entries is None or obj is None:
        return
    if not isinstance(entries, list):
        raise UndecodableFields("metadata.managedFields is no list")
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("fieldsV1", {}), dict):
            raise UndecodableFields("an entry of metadata.managedFields is no map with fieldsV1")
        if entry.get("apiVersion") == obj.get("apiVersion") and not entry.get("subresource"):
            yield _Entry(
                manager=str(entry.get("manager")),
                operation=str(entry.get("operation")),
                fields=entry.get("fieldsV1", {}),
            )


def wiped_fields(
    old: Object, new: Object, managed: Sequence[ManagedBy], changed: Sequence[Change]
) -> tuple[Change, ...]:
    """Return a change of managedFields if the tools' entries lost fields whose values stayed as they were.

    Whoever changes a value becomes its owner, and the server folds old Update entries into `ancient-changes`: neither
    is a wipe.
    """
    managers = _managers(managed)
    before = [entry for entry in _entries(old) if entry.manager in managers]
    entries = list(_entries(new))
    after = [entry for entry in entries if entry.manager in managers]
    if before == after or not before or (after and managers <= KUBECTL):
        return ()  # kubectl moves its own entries about when an apply changes sides
    touched = {change.path for change in changed}
    kept = {path for entry in after for path in leaves(entry.fields)}
    kept |= {path[:end] for path in touched for end in range(len(path))}
    folded = {path for entry in entries if entry.is_folded for path in leaves(entry.fields)}
    lost = sum(
        path not in kept and not (entry.operation == "Update" and path in folded) and not _is_below(path, touched)
        for entry in before
        for path in present(entry.fields, new)
    )
    return (Change(MANAGED_FIELDS_PATH, f"{lost} fields of Git's", ABSENT),) if lost else ()


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


def takes_declared_value(change: Change, manifest: Finder) -> bool:
    """Tell whether `change` sets a field to exactly what Git's manifest says, also where that is nothing.

    Metadata that manifests hardly ever hold is the cluster's: that Git says nothing of it gives no leave to wipe it.
    """
    if change.path[:1] == ("f:metadata",) and _NOT_IN_MANIFESTS.intersection(change.path[1:2]):
        return False
    return bool(manifest.value_at(change.path) == change.after)


def converges(drift: Sequence[Change], obj: Object, declared: Declared | None, marks: Set[Path]) -> bool:
    """Tell whether all of `drift` makes `obj` (as it was) what Git says it is.

    What the tool's own entries still hold has Git's value already: whoever changes a value takes its ownership. So a
    change of that is none that undoes something, whatever a last-applied annotation says that somebody noted once.
    Without such an entry (there is none of the version in which somebody chose to write) nothing tells. Nor does it
    undo anything to take away a mark, or last-applied itself.
    """
    manifest = declared.manifest if declared else None
    if declared is None or manifest is None or manifest.get("apiVersion") != obj.get("apiVersion"):
        return False
    return bool(declared.fields) and all(_undoes(change, declared, marks) for change in drift)


def _undoes(change: Change, declared: Declared, marks: Set[Path]) -> bool:
    if any(covers(fields, change) for fields in declared.fields) or not takes_declared_value(change, declared.finder):
        return False
    return change.after is not ABSENT or (change.path not in marks and change.path != LAST_APPLIED_PATH)

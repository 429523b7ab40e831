"""What /mutate writes: the stamp of a granted write, and what a write dropped from an open window.

Pure, and the same when called again: what is right already is left alone. Easy to get wrong: a patch on DELETE is an
error, a patch on Scale is lost. Taking the ask away, and only that, ends a window; a write that drops ask and stamp
together (`kubectl replace`, a reconciler's PUT) meant neither, and gets both back.
"""

from dataclasses import replace

from webhook.actors import Actor
from webhook.admission import AdmissionRequest, Object, PatchOperation, annotations, metadata_patch
from webhook.break_glass import (
    ACTIVE,
    ASKS,
    LABEL,
    STAMPS,
    Grant,
    Stamp,
    grow,
    next_write,
    open_stamp,
    stamp_annotations,
)
from webhook.decision import Decision, Verdict
from webhook.facts import Facts, held_changes
from webhook.fields import print_path

REPLICAS = ".spec.replicas"


def stamp_of(facts: Facts, grant: Grant, user: str, key: bytes) -> Stamp:
    """Return the stamp that a granted write of `user` leaves.

    An object that can be scaled always lists its replicas: a scale can't be stamped when it comes.
    """
    changed = held_changes(facts.drift)
    fields = [print_path(change.path) for change in changed] + ([REPLICAS] if facts.scalable else [])
    if facts.window is not None:
        stamp = grow(facts.window, fields, grant.until)
    else:
        stamp = open_stamp(id_=grant.id, by=grant.by, until=grant.until, fields=fields)
    return replace(stamp, write=next_write(stamp, user, changed, key)) if changed else stamp


def stamp_patch(facts: Facts, decision: Decision, request: AdmissionRequest, key: bytes) -> list[PatchOperation]:
    """Return the JSON Patch for a write to an object (not to its scale); empty where there is nothing to write."""
    old, new = request.old_object, request.object
    if new is None:
        return []
    if decision.verdict is Verdict.BREAK_GLASS and facts.grant is not None:
        wanted = stamp_annotations(stamp_of(facts, facts.grant, request.user.username, key), facts.ref, key)
    elif facts.actor is Actor.RECONCILER and facts.window is not None:
        wanted = {name: annotations(old)[name] for name in STAMPS}
    else:
        return []
    wanted |= _dropped_ask(facts, old, new)
    return metadata_patch(new, "annotations", wanted) + metadata_patch(new, "labels", {LABEL: ACTIVE})


def _dropped_ask(facts: Facts, old: Object | None, new: Object) -> dict[str, str | None]:
    if facts.window is None or facts.closes:
        return {}
    before, after = annotations(old), annotations(new)
    return {name: before[name] for name in ASKS if name in before and name not in after}

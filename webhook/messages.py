"""Every sentence that goes back with an answer: denial, warning; and drift, printed for people.

The first line of a denial stands alone: some clients show no more. Easy to get wrong: everything here repeats what
somebody wrote into an object, a name or a reason. Control characters never reach a terminal, lengths are bounded, and
the values of Secrets are not shown, wherever in the object they stand.
"""

import json
import shlex
import unicodedata
from collections.abc import Sequence
from typing import Any

from webhook.admission import AdmissionRequest, Operation
from webhook.break_glass import ASK, ObjectRef, is_own_path, print_time
from webhook.decision import Decision, Reason, Verdict
from webhook.declared import LAST_APPLIED_PATH
from webhook.facts import Facts
from webhook.fields import ABSENT, Change, canonical, print_path
from webhook.managed import ManagedBy
from webhook.record import Drift

HIDDEN = "(hidden)"
_MOST_LINES = 10
_LONGEST_VALUE = 64
_LONGEST_PATH = 200
_LONGEST_WARNING = 120

_LONGEST_MESSAGE = 8000
"""Bytes. Beyond that each line is cut short: what comes out is printed in a terminal, and kept in the audit log."""
_UNSAFE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode categories of what moves a cursor, hides, or turns the direction of what follows."""
_LOWER_KINDS = ("", "apps", "batch", "autoscaling", "policy")


def plain(text: str, longest: int = 200) -> str:
    """Return `text` on one line, with nothing but what can be seen, cut in the middle to `longest` characters."""
    if len(text) > 5 * longest:
        text = text[: 4 * longest] + text[-longest:]
    if not (text.isascii() and text.isprintable()):
        text = "".join(" " if unicodedata.category(letter) in _UNSAFE else letter for letter in text)
    return cut(text, longest)


def cut(text: str, longest: int) -> str:
    """Return `text` with its middle left out where it is longer than `longest` characters."""
    if len(text) <= longest:
        return text
    head = (longest - 3) // 2
    return f"{text[:head]}...{text[len(text) - (longest - 3 - head) :]}"


def print_value(value: Any) -> str:
    """Return a value as a person reads it: text bare unless it looks like something else, the rest as JSON."""
    if value is ABSENT:
        return "(absent)"
    if isinstance(value, str) and _is_bare(value):
        return plain(value, _LONGEST_VALUE)
    return plain(canonical(value), _LONGEST_VALUE)


def _is_bare(text: str) -> bool:
    if not text or text[0] in '([{"' or text[0].isspace() or text[-1].isspace():
        return False
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return True
    return False


def print_drift(changes: Sequence[Change], ref: ObjectRef, *, most: int = 100) -> tuple[Drift, ...]:
    """Return the first `most` changes for people and records. An object that comes or goes as a whole has no values."""
    hide = (ref.group, ref.kind) == ("", "Secret")
    return tuple(_print_change(change, hide=hide) for change in shown(changes)[:most])


def _print_change(change: Change, *, hide: bool) -> Drift:
    path = plain(print_path(change.path), _LONGEST_PATH)
    if not change.path:
        return Drift(
            path,
            "(absent)" if change.before is ABSENT else "(this object)",
            "(absent)" if change.after is ABSENT else "(this object)",
        )
    if change.path == LAST_APPLIED_PATH or hide:
        values = ("(absent)" if value is ABSENT else HIDDEN for value in (change.before, change.after))
        return Drift(path, *values)
    return Drift(path, print_value(change.before), print_value(change.after))


def shown(changes: Sequence[Change]) -> Sequence[Change]:
    """Return the changes without those that only follow others: last-applied repeats the fields in it."""
    kept = [c for c in changes if c.path != LAST_APPLIED_PATH and not is_own_path(c.path)]
    return kept or changes


def object_name(ref: ObjectRef) -> str:
    """Return `Deployment shop/checkout`."""
    place = f"{ref.namespace}/{ref.name}" if ref.namespace and ref.kind != "Namespace" else ref.name
    return f"{plain(ref.kind, 63)} {plain(place, 253)}"


def kubectl_name(ref: ObjectRef) -> str:
    """Return what kubectl takes for the object: `deployment/checkout -n shop`."""
    kind = ref.kind.lower() if ref.group in _LOWER_KINDS else f"{ref.kind.lower()}.{ref.group}"
    name = shlex.quote(plain(f"{kind}/{ref.name}", 400))
    in_namespace = ref.namespace and ref.kind != "Namespace"
    return f"{name} -n {shlex.quote(plain(ref.namespace, 63))}" if in_namespace else name


def print_managed(managed: Sequence[ManagedBy]) -> str:
    """Return who manages the object: `Argo CD application "shop-prod"`."""
    return plain(" and ".join(str(m) for m in managed), 300)


def message_of(facts: Facts, decision: Decision, record: str) -> str:
    """Return the text of a denial. `record` is the id under which it is kept, empty if it is not."""
    if decision.reason is Reason.HELD:
        lines = _held(facts, decision)
    elif decision.reason is Reason.STAMP_FORGED:
        lines = _forged(facts)
    elif facts.touches_namespace_keys:
        lines = _namespace(facts)
    else:
        lines = _drift(facts, decision)
    if len("\n".join(lines).encode()) > _LONGEST_MESSAGE:
        lines = [cut(line, 120) for line in lines]
    return "\n".join([*lines, *([f"Record {record}"] if record else [])])


def _drift(facts: Facts, decision: Decision) -> list[str]:
    if decision.reason is Reason.GRANT_REFUSED:
        return _refused(facts, decision)
    what = {
        Operation.CREATE: "creating it by hand would drift from Git.",
        Operation.DELETE: "deleting it would drift from Git.",
    }.get(facts.operation, "this change would drift from Git:")
    return [
        f"{object_name(facts.ref)} is managed by {print_managed(facts.managed)}; {what}",
        *_drift_lines(decision.drift, facts.ref),
        f"Change it in Git, {_place(facts)}.",
        _way_out(facts),
    ]


def _refused(facts: Facts, decision: Decision) -> list[str]:
    why = facts.refusal or "it could not be stamped; try again, and for a scale annotate the object first"
    changed = [change for change in decision.drift if not is_own_path(change.path)]
    return [
        f"Break-glass is refused for {object_name(facts.ref)}: {why}.",
        *(["Without it, this change would drift from Git:"] if changed else []),
        *_drift_lines(changed, facts.ref),
        f"It is managed by {print_managed(facts.managed)}; change it in Git, {_place(facts)}.",
    ]


def _drift_lines(changes: Sequence[Change], ref: ObjectRef) -> list[str]:
    drift = [change for change in shown(changes) if change.path]
    lines = [f"  {d.path}: {d.before} -> {d.after}" for d in print_drift(drift, ref, most=_MOST_LINES)]
    return [*lines, f"  and {len(drift) - _MOST_LINES} more fields"] if len(drift) > _MOST_LINES else lines


def _place(facts: Facts) -> str:
    mark = facts.managed[0]
    if mark.tool.key == "push":
        return f"in {plain(mark.application, 200)}"
    return f"where {mark.tool.title} {plain(mark.application, 100)!r} is deployed from".replace("'", '"')


def _way_out(facts: Facts) -> str:
    if facts.operation is Operation.CREATE:
        return f'In an emergency: add the annotation {ASK}: "INC-... why" to the object'
    return f'In an emergency, first: kubectl annotate {kubectl_name(facts.ref)} {ASK}="INC-... why"'


def _held(facts: Facts, decision: Decision) -> list[str]:
    window = facts.window
    until = f" until {print_time(window.until)} ({plain(window.by, 100)}: {plain(facts.why, 200)})" if window else ""
    what = "this would delete it." if facts.operation is Operation.DELETE else "this would undo:"
    return [
        f"{object_name(facts.ref)} is held by break-glass{until}; {what}",
        *_drift_lines(decision.drift, facts.ref),
        f"To end it earlier: kubectl annotate {kubectl_name(facts.ref)} {ASK}-",
    ]


def _forged(facts: Facts) -> list[str]:
    return [
        f"{object_name(facts.ref)}: the stamps {ASK}-... are driftgate's own and can't be written or removed by hand.",
        f'To ask for break-glass: kubectl annotate {kubectl_name(facts.ref)} {ASK}="INC-... why"',
        f"To end it: kubectl annotate {kubectl_name(facts.ref)} {ASK}-",
    ]


def _namespace(facts: Facts) -> list[str]:
    return [
        f"{object_name(facts.ref)}: break-glass for a whole namespace is not possible; nothing was changed.",
        "Annotate the object that has to change: kubectl annotate KIND/NAME "
        f'-n {plain(facts.ref.name, 63)} {ASK}="INC-... why"',
    ]


def no_right(request: AdmissionRequest, ref: ObjectRef) -> str:
    """Return why somebody has not the right to break the glass, with the rule that would give it."""
    groups, resources = canonical([request.resource.group]), canonical([request.resource.resource])
    return (
        f"{plain(request.user.username, 200)} has no right to it (an administrator gives it by a "
        f"{'Role in ' + plain(ref.namespace, 63) if ref.namespace else 'ClusterRole'}: "
        f'{{apiGroups: {groups}, resources: {resources}, verbs: ["break-glass"]}})'
    )


def cannot_judge(request: AdmissionRequest, why: str) -> str:
    """Return the denial of a write that could not be judged."""
    name = object_name(ObjectRef(group="", kind=request.kind.kind, namespace=request.namespace, name=request.name))
    return f"driftgate could not judge this write to {name}: {plain(why, 300)}. Try again in a moment."


def warnings_of(facts: Facts, decision: Decision) -> list[str]:
    """Return the warnings that kubectl prints for a write that passes, each under 120 characters."""
    warnings = []
    if decision.verdict is Verdict.BREAK_GLASS:
        if facts.closes:
            warnings.append("break-glass ends here: the object is given back to Git")
        elif facts.grant is not None:
            until = print_time((facts.stamp or facts.grant).until)
            warnings.append(f"break-glass until {until}, window {facts.grant.id}: bring the change to Git")
        if facts.operation is Operation.DELETE:
            warnings.append("a deletion can't be held: GitOps will create the object again")
    if decision.reason is Reason.NOT_MANAGED and facts.ask is not None:
        warnings.append("Git does not manage this object: no break-glass is needed, and none was opened")
    return [cut(warning, _LONGEST_WARNING - 1) for warning in warnings]

"""What an issue says: title, body, comments. Markdown, in which nothing that users wrote can act.

Easy to get wrong: reasons, names and values come from whoever writes to the cluster. They stand in code spans only,
where no host makes a mention, a link or HTML of them; a backtick or a line break can't end the span.
"""

from collections.abc import Sequence

from webhook.break_glass import ASK, ObjectRef
from webhook.messages import kubectl_name, object_name, plain
from webhook.record import Drift, Record

_MOST_ROWS = 50


def code(text: str, longest: int = 300) -> str:
    """Return `text` as a code span that fits into a table's cell."""
    shown = plain(text, longest).replace("`", "'").replace("|", "¦").replace("<!--", "<!- -")
    return f"`{shown or ' '}`"


def ref_of_record(record: Record) -> ObjectRef:
    """Return the object that a record is about."""
    return ObjectRef(group=record.group, kind=record.kind, namespace=record.namespace, name=record.name)


def title_of(record: Record) -> str:
    """Return the issue's title: what was changed, and by whom."""
    return plain(f"Break-glass: {object_name(ref_of_record(record))} changed by {record.user}", 200)


def body_of(record: Record, *, by: str, why: str, until: str) -> str:
    """Return the body for the first change of a window. `by` opened it, for the reason `why`."""
    ref = ref_of_record(record)
    facts = [
        ("Object", code(object_name(ref))),
        ("Managed by", code(record.managed_by)),
        ("Changed by", code(record.user)),
        *([("Opened by", code(by))] if by != record.user else []),
        ("Why", code(why, 1000)),
        ("When", record.time),
        ("Held until", until),
        *([("Cluster", code(record.cluster))] if record.cluster else []),
        ("Window", code(record.window)),
        ("Record", code(record.id)),
    ]
    return "\n".join(
        [
            "This object was changed in the cluster, behind break-glass, and differs from Git now.",
            "",
            "| | |",
            "|---|---|",
            *(f"| {name} | {value} |" for name, value in facts),
            "",
            _diff(record),
            "",
            f"**To do:** bring the change to Git, or let it go. {_what_happens(record)}",
            "",
            f"End it earlier: {code(f'kubectl annotate {kubectl_name(ref)} {ASK}-')}",
        ]
    )


def _what_happens(record: Record) -> str:
    if record.operation == "DELETE":
        return "A deletion can't be held: the GitOps tool will create the object again."
    return "Until then the GitOps tool is held back from undoing it; after that it will."


def comment_of(record: Record) -> str:
    """Return the comment for a further change in the same window."""
    return f"Changed again by {code(record.user)} at {record.time}, record {code(record.id)}.\n\n{_diff(record)}"


def closing_of(outcome: str) -> str:
    """Return the comment that tells how a window ended."""
    return f"Break-glass ended: {outcome}. The object is given back to Git; what Git does not say yet will be undone."


def _diff(record: Record) -> str:
    if record.operation == "DELETE":
        return "The object was **deleted**."
    if record.operation == "CREATE":
        return "The object was **created** by hand."
    rows = [_row(drift) for drift in record.drift[:_MOST_ROWS]]
    left = len(record.drift) - len(rows)
    more = [f"\nand {left} more fields: `driftgate audit show {record.id}`"] if left > 0 else []
    return "\n".join(["| Field | Before | Now |", "|---|---|---|", *rows, *more])


def _row(drift: Drift) -> str:
    return f"| {code(drift.path)} | {code(drift.before)} | {code(drift.after)} |"


def changes_nothing(drift: Sequence[Drift]) -> bool:
    """Tell whether a record only opens or ends a window: nothing but driftgate's own keys changed."""
    return bool(drift) and all(d.path.startswith(f'.metadata.annotations["{ASK}') for d in drift)

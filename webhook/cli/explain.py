"""`driftgate explain`: decide recorded AdmissionReviews offline, and show facts, verdict and the rule that decided."""

import json
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from webhook.admission import AdmissionRequest, Object, Webhook, parse_review
from webhook.cli.options import config_option
from webhook.config import load, policy_of
from webhook.decision import Reason, Verdict, decide
from webhook.errors import CannotJudge, MalformedReview, ParentUnknown
from webhook.facts import facts_of
from webhook.messages import message_of, plain, print_drift, print_managed
from webhook.policy import Policy

_NO_KEY = b"explain knows no seal: a window on a recorded object counts as none."


@click.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(allow_dash=True, path_type=Path))
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True)
@click.option(
    "--parent",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="The object that a Scale scales (JSON or YAML).",
)
@config_option
def explain(files: tuple[Path, ...], output: str, parent: Path | None, config_file: Path | None) -> None:
    """Decide recorded AdmissionReviews: files, folders, or - for standard input.

    Nothing is asked of a cluster: break-glass counts as not granted. Exit code 0 if every review could be read,
    1 if one could not.
    """
    policy = policy_of(load(config_file))
    parent_object = _read_object(parent) if parent else None
    failed = False
    found = []
    for name, body in _bodies(files):
        try:
            found.append(explained(name, body, policy, parent_object))
        except MalformedReview as error:
            failed = True
            click.echo(f"{name}: {error}", err=True)
    if output == "json":
        click.echo(json.dumps(found, indent=2))
    else:
        click.echo("\n".join(_as_text(one) for one in found), nl=bool(found))
    sys.exit(1 if failed else 0)


def explained(name: str, body: bytes, policy: Policy, parent: Object | None = None) -> dict[str, Any]:
    """Return what is decided about one review, in JSON types. Raises MalformedReview."""
    request = parse_review(body)
    try:
        facts = facts_of(request, policy, webhook=Webhook.VALIDATE, key=_NO_KEY, now=datetime.now(UTC), parent=parent)
    except CannotJudge as error:
        reason = Reason.PARENT_UNKNOWN if isinstance(error, ParentUnknown) else Reason.CANNOT_JUDGE
        return _entry(
            name, request, verdict=Verdict.DENY, reason=reason, message=str(error), rule="0. it could not be judged"
        )
    decision = decide(facts, policy)
    return _entry(
        name,
        request,
        verdict=decision.verdict,
        reason=decision.reason,
        rule=decision.rule,
        managed_by=print_managed(facts.managed),
        actor=facts.actor,
        drift=[{"path": d.path, "before": d.before, "after": d.after} for d in print_drift(decision.drift, facts.ref)],
        message=message_of(facts, decision, "") if decision.verdict is Verdict.DENY else "",
    )


def _entry(name: str, request: AdmissionRequest, **known: Any) -> dict[str, Any]:
    """Return the keys of one review, in the order in which people read them."""
    place = "/".join(part for part in (request.namespace, request.name) if part)
    sub_resource = f"/{request.sub_resource}" if request.sub_resource else ""
    return {
        "file": name,
        "write": plain(
            f"{request.operation} {request.resource.resource}{sub_resource} {place} by {request.user.username}", 400
        ),
        "verdict": str(known["verdict"]),
        "reason": str(known["reason"]),
        "rule": known["rule"],
        "managed_by": known.get("managed_by", ""),
        "actor": str(known.get("actor", "")),
        "drift": known.get("drift", []),
        "message": known["message"],
    }


def _as_text(entry: dict[str, Any]) -> str:
    lines = [
        entry["file"],
        f"  write       {entry['write']}",
        f"  managed by  {entry['managed_by'] or '-'}",
        f"  actor       {entry['actor'] or '-'}",
        *(f"  drift       {d['path']}: {d['before']} -> {d['after']}" for d in entry["drift"]),
        f"  verdict     {entry['verdict']} {entry['reason']}",
        f"  rule        {entry['rule']}",
    ]
    message: list[str] = entry["message"].splitlines()
    return "\n".join([*lines, *(f"  {'message' if not n else '':11} {line}" for n, line in enumerate(message))])


def _bodies(files: tuple[Path, ...]) -> Iterator[tuple[str, bytes]]:
    for file in files:
        if str(file) == "-":
            yield "-", sys.stdin.buffer.read()
        elif file.is_dir():
            yield from ((str(found), found.read_bytes()) for found in sorted(file.glob("**/*.json")))
        else:
            try:
                yield str(file), file.read_bytes()
            except OSError as error:
                raise click.ClickException(f"{file} can't be read: {error.strerror}") from None


def _read_object(file: Path) -> Object:
    import yaml

    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise click.ClickException(f"--parent {file} can't be read: {error}") from None
    if not isinstance(found, dict) or "kind" not in found:
        raise click.ClickException(f"--parent {file} holds no Kubernetes object")
    return found

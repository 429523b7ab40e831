"""One AdmissionReview from end to end: parse, facts, decide, record, respond.

The only place where core and edges meet, and the only place that decides what happens when a write can't be judged.
Easy to get wrong: /mutate only patches, and lets everything pass; /validate refuses and records, but never records a
dry run. Whoever waits for an answer must not wait for the cluster unless the write asks for break-glass or scales.
"""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

import msgspec

from webhook.admission import (
    AdmissionRequest,
    AdmissionResponse,
    GroupVersionResource,
    Object,
    PatchOperation,
    UserInfo,
    Webhook,
)
from webhook.break_glass import PREFIX, ObjectRef, print_time, ref_of
from webhook.config import Config, FailMode, policy_of, read_seal_key
from webhook.decision import Decision, Reason, Verdict, decide
from webhook.errors import CannotJudge, MalformedReview
from webhook.facts import Facts, facts_of
from webhook.grants import with_grant
from webhook.logs import log, told
from webhook.messages import cannot_judge, message_of, no_right, plain, print_drift, print_managed, warnings_of
from webhook.policy import Mode, Policy
from webhook.record import Record, new_ulid, print_millis
from webhook.repeats import Repeats
from webhook.stamping import stamp_patch

_LARGE = 256 * 1024
"""Bytes of objects from which comparing them is no work for the event loop."""
_ASK = PREFIX.encode() + b"break-glass"


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back to the API server, and what has to be on disk before it may."""

    body: bytes
    recorded: Future[None] | None = None


class Reviewer(Protocol):
    """Judges reviews. Never raises: what can't be judged is answered by the fail mode."""

    def is_slow(self, webhook: Webhook, request: AdmissionRequest) -> bool:
        """Tell whether judging may wait for the cluster or take long: then not on the event loop."""
        ...

    def judge(self, webhook: Webhook, request: AdmissionRequest) -> Answer:
        """Return the answer."""
        ...

    def ready(self) -> str | None:
        """Return why reviews can't be judged now, or None if they can."""
        ...

    def close(self) -> None:
        """Write out what is not written yet."""
        ...


class AuditLog(Protocol):
    """Keeps records. When the future is done, the record survives a crash."""

    def append(self, record: Record) -> Future[None]:
        """Hand a record over."""
        ...

    def close(self) -> None:
        """Write out what was handed over."""
        ...


class Questions(Protocol):
    """What is asked of the cluster while a write waits. Raises ClusterUnavailable."""

    def get(self, resource: GroupVersionResource, namespace: str, name: str) -> Object | None:
        """Return the object as it is stored, or None."""
        ...

    def may_break_glass(self, user: UserInfo, resource: GroupVersionResource, namespace: str, name: str) -> bool:
        """Return whether the user has the right to break the glass."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A decision with what it rests on."""

    facts: Facts
    decision: Decision
    patch: list[PatchOperation]


class AdmissionReviewer:
    """The real `Reviewer`. `now` is the clock and `new_id` makes ULIDs, so that a test can hold both still."""

    def __init__(
        self,
        policy: Policy,
        *,
        seal_key: bytes,
        cluster: Questions,
        audit_log: AuditLog,
        fail: FailMode = FailMode.CLOSED,
        cluster_name: str = "",
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        new_id: Callable[[], str] = new_ulid,
    ) -> None:
        self._policy = policy
        self._key = seal_key
        self._cluster = cluster
        self._audit_log = audit_log
        self._fail = fail
        self._cluster_name = cluster_name
        self._now = now
        self._new_id = new_id
        self._repeats = Repeats(new_id=new_id)

    def is_slow(self, webhook: Webhook, request: AdmissionRequest) -> bool:
        """Tell whether judging asks the cluster (a scale, break-glass) or compares large objects."""
        if request.sub_resource == "scale":
            return webhook is Webhook.VALIDATE
        if request.size > _LARGE:
            return True
        return _ASK in bytes(request.raw_object) or _ASK in bytes(request.raw_old_object)

    def judge(self, webhook: Webhook, request: AdmissionRequest) -> Answer:
        """Return the answer to one review."""
        started = time.perf_counter()
        try:
            judged = self._judge(webhook, request)
            answer = self._answer(webhook, request, judged)
            _log_decision(webhook, request, judged.facts, judged.decision, time.perf_counter() - started)
        except (CannotJudge, MalformedReview) as error:
            answer = self._could_not_judge(webhook, request, str(error))
        except Exception as error:  # noqa: BLE001 -- the one place that answers for whatever goes wrong in judging
            log("review.failed", uid=request.uid, **told(error))
            answer = self._could_not_judge(webhook, request, f"internal error ({type(error).__name__})")
        return answer

    def ready(self) -> str | None:
        """Return None: what a reviewer needs it has from the start."""
        return None

    def close(self) -> None:
        """Record the repeated denials that were only counted so far, and close the audit log."""
        for record in self._repeats.flush(self._now(), all_of_them=True):
            self._audit_log.append(record)
        self._audit_log.close()

    def _judge(self, webhook: Webhook, request: AdmissionRequest) -> Judged:
        now = self._now()
        facts = facts_of(
            request, self._policy, webhook=webhook, key=self._key, now=now, parent=self._parent(webhook, request)
        )
        if facts.wants_grant:
            facts = self._with_grant(request, facts, now)
        decision = decide(facts, self._policy)
        patch = []
        if webhook is Webhook.MUTATE and request.sub_resource in {"", "status"}:
            patch = stamp_patch(facts, decision, request, self._key)
        return Judged(facts=facts, decision=decision, patch=patch)

    def _parent(self, webhook: Webhook, request: AdmissionRequest) -> Object | None:
        """Fetch what is scaled; at /mutate there is nothing to find out."""
        if request.sub_resource != "scale" or webhook is Webhook.MUTATE:
            return None
        return self._cluster.get(request.resource, request.namespace, request.name)

    def _with_grant(self, request: AdmissionRequest, facts: Facts, now: datetime) -> Facts:
        allowed = self._cluster.may_break_glass(request.user, request.resource, request.namespace, request.name)
        right = None if allowed else no_right(request, facts.ref)
        return with_grant(facts, self._policy, user=request.user.username, right=right, now=now, new_id=self._new_id)

    def _answer(self, webhook: Webhook, request: AdmissionRequest, judged: Judged) -> Answer:
        facts, decision = judged.facts, judged.decision
        if webhook is Webhook.MUTATE:
            warnings = warnings_of(facts, decision) if decision.reason is Reason.NOT_MANAGED else ()
            response = AdmissionResponse(uid=request.uid, allowed=True, patch=judged.patch, warnings=warnings)
            return Answer(response.encode())
        record_id, recorded = self._keep(request, self._record(request, judged)) if _is_kept(decision) else ("", None)
        response = AdmissionResponse(
            uid=request.uid,
            allowed=decision.verdict is not Verdict.DENY,
            message=message_of(facts, decision, record_id) if decision.verdict is Verdict.DENY else "",
            reason="Forbidden",
            warnings=warnings_of(facts, decision),
            audit_annotations=_audit_annotations(facts, decision, record_id),
        )
        return Answer(response.encode(), recorded)

    def _record(self, request: AdmissionRequest, judged: Judged) -> Record:
        return record_of(
            request, judged.facts, judged.decision, id_=self._new_id(), now=self._now(), cluster=self._cluster_name
        )

    def _keep(self, request: AdmissionRequest, record: Record) -> tuple[str, Future[None] | None]:
        """Record, unless this is a dry run. The same review again is only counted, under the first one's id."""
        if request.dry_run:
            return "", None
        for repeated in self._repeats.flush(self._now()):
            self._audit_log.append(repeated)
        known = self._repeats.granted if record.verdict == Verdict.BREAK_GLASS else self._repeats.seen
        if first := known(record, self._now()):
            return first, None
        return record.id, self._audit_log.append(record)

    def _could_not_judge(self, webhook: Webhook, request: AdmissionRequest, why: str) -> Answer:
        """Answer by the fail mode. /mutate lets pass: /validate will ask the same."""
        allowed = webhook is Webhook.MUTATE or self._fail is FailMode.OPEN or self._policy.mode is Mode.AUDIT
        log(
            "review.not_judged",
            uid=request.uid,
            webhook=webhook,
            user=plain(request.user.username),
            resource=request.resource.resource,
            namespace=request.namespace,
            allowed=allowed,
            why=plain(why),
        )
        response = AdmissionResponse(
            uid=request.uid,
            allowed=allowed,
            message=cannot_judge(request, why),
            reason="InternalError",
            code=500,
            warnings=["driftgate could not judge this write and let it pass"]
            if allowed and webhook == "validate"
            else (),
            audit_annotations={"verdict": Verdict.ALLOW if allowed else Verdict.DENY, "reason": Reason.CANNOT_JUDGE},
        )
        if webhook is Webhook.MUTATE or request.dry_run:
            return Answer(response.encode())
        record = msgspec.structs.replace(
            _base_record(request, ref_of(request), id_=self._new_id(), now=self._now(), cluster=self._cluster_name),
            verdict=Verdict.ALLOW if allowed else Verdict.DENY,
            reason=Reason.CANNOT_JUDGE,
            detail=plain(why, 500),
        )
        _, recorded = self._keep(request, record)
        return Answer(response.encode(), recorded)


def _is_kept(decision: Decision) -> bool:
    return decision.verdict is not Verdict.ALLOW or decision.reason is Reason.WOULD_DENY


def _base_record(request: AdmissionRequest, ref: ObjectRef, *, id_: str, now: datetime, cluster: str) -> Record:
    """Return what a record says about a write, whatever was decided."""
    return Record(
        id=id_,
        time=print_millis(now),
        cluster=cluster,
        uid=request.uid,
        user=plain(request.user.username, 253),
        groups=tuple(plain(group, 253) for group in request.user.groups[:32]),
        operation=request.operation,
        group=ref.group,
        version=request.resource.version,
        resource=request.resource.resource,
        sub_resource=request.sub_resource,
        kind=ref.kind,
        namespace=ref.namespace,
        name=plain(ref.name, 253),
    )


def record_of(
    request: AdmissionRequest, facts: Facts, decision: Decision, *, id_: str, now: datetime, cluster: str = ""
) -> Record:
    """Return the record of one decision."""
    granted = facts.grant if decision.verdict is Verdict.BREAK_GLASS else facts.window
    stamp = facts.stamp if decision.verdict is Verdict.BREAK_GLASS else None
    before = facts.window.write if facts.window else ""
    return msgspec.structs.replace(
        _base_record(request, facts.ref, id_=id_, now=now, cluster=cluster),
        managed_by=print_managed(facts.managed),
        verdict=decision.verdict,
        reason=decision.reason,
        drift=print_drift(decision.drift, facts.ref),
        window=granted.id if granted else "",
        write=stamp.write if stamp and stamp.write != before else "",
        after_write=before,
        until=print_time((stamp or granted).until) if granted else "",
        ask=plain(facts.ask.reason, 1000) if facts.ask else "",
        detail=plain(facts.refusal, 500),
    )


def _audit_annotations(facts: Facts, decision: Decision, record: str) -> Mapping[str, str]:
    found = {
        "verdict": decision.verdict,
        "reason": decision.reason,
        "record": record,
        "managed-by": print_managed(facts.managed),
        "break-glass-id": facts.grant.id if facts.grant else "",
    }
    return {name: value for name, value in found.items() if value}


def _log_decision(
    webhook: Webhook, request: AdmissionRequest, facts: Facts, decision: Decision, seconds: float
) -> None:
    if webhook is Webhook.MUTATE or decision.reason in {Reason.IGNORED, Reason.NOT_MANAGED}:
        return
    ref = ref_of(request)
    log(
        "review.decided",
        uid=request.uid,
        operation=request.operation,
        resource=request.resource.resource,
        sub_resource=request.sub_resource,
        namespace=ref.namespace,
        name=plain(ref.name),
        user=plain(request.user.username),
        managed_by=print_managed(facts.managed),
        verdict=decision.verdict,
        reason=decision.reason,
        drift=[d.path for d in print_drift(decision.drift, facts.ref, most=20)],
        dry_run=bool(request.dry_run),
        seconds=round(seconds, 6),
    )


def make_reviewer(config: Config) -> AdmissionReviewer:
    """Return the reviewer that a worker process uses. Opens nothing before the first review needs it."""
    from webhook.cluster import Cluster  # noqa: PLC0415 -- the edges are a worker's, made after the fork
    from webhook.outbox import Outbox  # noqa: PLC0415

    return AdmissionReviewer(
        policy_of(config),
        seal_key=read_seal_key(config.break_glass.key_file),
        cluster=Cluster(config.kubeconfig, timeout=config.cluster_timeout),
        audit_log=Outbox(config.outbox),
        fail=config.fail,
        cluster_name=config.cluster,
    )

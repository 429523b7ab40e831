"""Recorded writes: what a real API server asked its webhooks, in `reviews/` as it was sent, and what is made of it.

Easy to get wrong: a recording knows nothing of what happened here before it. So what it changes is made to the object
as it is stored now, and what else is replaced in it is remembered, to be said.
"""

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from webhook.admission import Object, Webhook
from webhook.break_glass import ASK
from webhook.demo.stand_in import patched_with

REVIEWS = Path(__file__).parent / "reviews"
WHY = "INC-42 guestbook is down"

_BOB = {"username": "bob", "groups": ["sre", "system:authenticated"]}


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """One recorded write: what the API server asked /mutate (nothing, for a scale) and then /validate."""

    mutate: Object | None
    validate: Object
    replaced: tuple[str, ...] = ()
    """What is not as it was recorded."""

    @property
    def note(self) -> str:
        """Where it comes from."""
        return f"recorded; replaced: {', '.join(self.replaced)}" if self.replaced else "recorded from a real API server"

    @classmethod
    def load(cls, name: str) -> Self:
        """Read a recording by its name."""
        mutate, validate = (REVIEWS / f"{name}.{webhook}.json" for webhook in Webhook)
        return cls(mutate=json.loads(mutate.read_bytes()) if mutate.exists() else None, validate=_read(validate))

    def by_bob(self) -> Self:
        """Return the same, written by bob."""
        return self._with(lambda request: {**request, "userInfo": _BOB}, "user")

    def asking(self) -> Self:
        """Return the same, with an ask for break-glass where it annotates `team=platform`."""

        def ask(request: Object) -> Object:
            text = json.dumps(request).replace('"f:team"', f'"f:{ASK}"')
            found: Object = json.loads(text.replace('"team": "platform"', f'"{ASK}": "{WHY}"'))
            return found

        return self._with(ask, "annotation")

    def taken_back(self) -> Self:
        """Return the opposite write."""

        def turn(request: Object) -> Object:
            return {**request, "object": request["oldObject"], "oldObject": request["object"]}

        return self._with(turn, "direction")

    def patched(self, answer: Object) -> Object:
        """Return what /validate is asked after /mutate has given this answer."""
        if self.mutate is None:
            return self.validate
        found: Object | None = self.mutate["request"]["object"]
        if "patch" in answer:
            found = patched_with(self.mutate["request"]["object"], json.loads(base64.b64decode(answer["patch"])))
        return {**self.validate, "request": {**self.validate["request"], "object": found}}

    def onto(self, stored: Object) -> Self:
        """Return the write that changes `stored` as this one changes what it was made to."""

        def move(request: Object) -> Object:
            return {**request, "oldObject": stored, "object": moved(request["oldObject"], request["object"], stored)}

        return self._with(move)

    def _with(self, change: Callable[[Object], Object], *what: str) -> Self:
        def changed(review: Object) -> Object:
            return {**review, "request": change(review["request"])}

        mutate = None if self.mutate is None else changed(self.mutate)
        return replace(self, mutate=mutate, validate=changed(self.validate), replaced=(*self.replaced, *what))


def _read(path: Path) -> Object:
    found: Object = json.loads(path.read_bytes())
    return found


def moved(old: Any, new: Any, onto: Any) -> Any:
    """Return `onto` with what changes between `old` and `new`; lists of one length item by item, others whole."""
    if isinstance(old, dict) and isinstance(new, dict) and isinstance(onto, dict):
        changed = {key for key in old.keys() | new.keys() if old.get(key) != new.get(key)}
        kept = {key: value for key, value in onto.items() if key not in changed or key in new}
        return kept | {key: moved(old.get(key), new[key], onto.get(key)) for key in changed if key in new}
    if isinstance(old, list) and isinstance(new, list) and isinstance(onto, list) and len(old) == len(new) == len(onto):
        return [moved(*items) for items in zip(old, new, onto, strict=True)]
    return onto if old == new else new

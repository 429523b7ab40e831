"""What an issue says, whole; and that nothing that users wrote can act in it."""

import re

import pytest

from tests.test_messages import HOSTILE, is_defused
from webhook.break_glass import ASK, ID
from webhook.issue_text import body_of, changes_nothing, closing_of, code, comment_of, title_of
from webhook.record import Drift, Record

RECORD = Record(
    id="01JDC3Q7V8ZK2M5T9XW4R6YB1E",
    time="2026-11-23T12:00:00.000Z",
    user="alice",
    operation="UPDATE",
    group="apps",
    version="v1",
    resource="deployments",
    kind="Deployment",
    namespace="shop",
    name="web",
    managed_by='Argo CD application "shop-prod"',
    verdict="BreakGlass",
    reason="Granted",
    drift=(Drift(".spec.replicas", "3", "5"), Drift('.spec.containers[name="web"].image', "web:1", "web:2")),
    window="01JDC3Q7V8ZK2M5T9XW4R6YB1D",
    ask="INC-42 checkout is down",
    until="2026-11-23T13:00:00Z",
)


def changed(**fields):
    return Record(**{**{name: getattr(RECORD, name) for name in RECORD.__struct_fields__}, **fields})


BODY = """\
This object was changed in the cluster, behind break-glass, and differs from Git now.

| | |
|---|---|
| Object | `Deployment shop/web` |
| Managed by | `Argo CD application "shop-prod"` |
| Changed by | `alice` |
| Why | `INC-42 checkout is down` |
| When | 2026-11-23T12:00:00.000Z |
| Held until | 2026-11-23T13:00:00Z |
| Window | `01JDC3Q7V8ZK2M5T9XW4R6YB1D` |
| Record | `01JDC3Q7V8ZK2M5T9XW4R6YB1E` |

| Field | Before | Now |
|---|---|---|
| `.spec.replicas` | `3` | `5` |
| `.spec.containers[name="web"].image` | `web:1` | `web:2` |

**To do:** bring the change to Git, or let it go. Until then the GitOps tool is held back from undoing it; after that \
it will.

End it earlier: `kubectl annotate deployment/web -n shop driftgate.dev/break-glass-`"""


def body(record=RECORD, by="alice", why="INC-42 checkout is down"):
    return body_of(record, by=by, why=why, until="2026-11-23T13:00:00Z")


def test_an_issue_tells_the_whole_story():
    """Who, what, when, why, until when, the diff, and how to end it."""
    assert title_of(RECORD) == "Break-glass: Deployment shop/web changed by alice"
    assert body() == BODY


def test_a_change_by_a_second_person_names_both():
    """Who opened the window, and who changed the object."""
    assert "| Changed by | `alice` |\n| Opened by | `bob` |\n" in body(by="bob")
    assert "Opened by" not in body()


def test_a_comment_tells_of_a_further_change():
    """With its own diff."""
    assert comment_of(RECORD) == (
        "Changed again by `alice` at 2026-11-23T12:00:00.000Z, record `01JDC3Q7V8ZK2M5T9XW4R6YB1E`.\n\n"
        "| Field | Before | Now |\n|---|---|---|\n"
        "| `.spec.replicas` | `3` | `5` |\n"
        '| `.spec.containers[name="web"].image` | `web:1` | `web:2` |'
    )


@pytest.mark.parametrize(
    ("operation", "text"),
    [("DELETE", "The object was **deleted**."), ("CREATE", "The object was **created** by hand.")],
)
def test_an_object_that_came_or_went_has_no_diff(operation, text):
    """A deletion can't be held, and the issue says so."""
    found = body(changed(operation=operation, drift=(Drift(".", "(this object)", "(absent)"),)))

    assert text in found
    assert ("can't be held" in found) == (operation == "DELETE")
    assert "| Field |" not in found


def test_many_rows_are_counted():
    """Fifty are shown, and the command that shows the rest."""
    found = body(changed(drift=tuple(Drift(f".f{n}", "1", "2") for n in range(60))))

    assert found.count("| `.f") == 50
    assert f"and 10 more fields: `driftgate audit show {RECORD.id}`" in found


def test_a_window_s_end_is_told():
    """And what happens to the change now."""
    assert closing_of("its time was up") == (
        "Break-glass ended: its time was up. The object is given back to Git; what Git does not say yet will be undone."
    )


def cells(row):
    """Return the cells of a table's row as GitHub splits it: a pipe counts unless a backslash escapes it."""
    return re.findall(r"((?:\\.|[^\\|])*)\|", row.removeprefix("|"))


MORE = {
    "escaped pipe": "a\\|@team",
    "two backslashes": "a\\\\|@team",
    "backslash at the end": "a\\",
    "backticks": "``` @team ```",
    "backtick at both ends": "`@team`",
    "pipe": "a|@team|b",
    "blank": "   ",
    "empty": "",
}


@pytest.mark.parametrize("text", [*HOSTILE.values(), *MORE.values()], ids=[*HOSTILE, *MORE])
def test_what_users_wrote_stays_inside_code_spans(text):
    """No mention, link, image, HTML, row or heading comes of it, wherever in the table it stands."""
    hostile = changed(
        user=text,
        namespace=text,
        name=text,
        kind=text,
        managed_by=text,
        cluster=text,
        drift=(Drift(text, text, text),),
    )

    for found in (body(hostile, by=f"x{text}", why=text), comment_of(hostile)):
        lines = found.split("\n")
        assert all(is_defused(line) for line in lines)
        assert len(found) < 16 * 1024
        for line in lines:
            columns = cells(line) if line.startswith("| ") and "---" not in line else [line]
            assert len(columns) <= 3
            for cell in columns:
                outside = re.sub(r"`[^`]*`", "", cell)
                assert not set(outside) & set("`@<[#!\\"), line
                assert "team" not in outside, line


@pytest.mark.parametrize("text", [*HOSTILE.values(), *MORE.values()], ids=[*HOSTILE, *MORE])
def test_a_title_is_one_short_line(text):
    """Trackers escape titles; a line break or an escape sequence is nothing for them."""
    title = title_of(changed(user=text, name=text))

    assert is_defused(title)
    assert len(title) <= 200


@pytest.mark.parametrize("text", ["a`b", "a``", "`", "a|b", "<!-- marker -->", "", "  "])
def test_a_code_span_is_closed_once(text):
    """Whatever it holds."""
    span = code(text)

    assert span.startswith("`")
    assert span.endswith("`")
    assert span.count("`") == 2
    assert len(span) > 2
    assert "<!--" not in span


@pytest.mark.parametrize(
    ("drift", "nothing"),
    [
        ((Drift(f'.metadata.annotations["{ASK}"]', "(absent)", "why"),), True),
        ((Drift(f'.metadata.annotations["{ID}"]', "(absent)", "x"),), True),
        ((Drift(f'.metadata.annotations["{ASK}"]', "(absent)", "why"), Drift(".spec.replicas", "3", "5")), False),
        ((), False),
    ],
)
def test_a_record_that_only_opens_a_window_changes_nothing(drift, nothing):
    """An ask, and what stands beside it, are no change of the object."""
    assert changes_nothing(drift) is nothing

"""One issue as a Markdown file, and the index of all of them. Where the files lie is not known here.

A file is YAML front matter (number, marker, title, state, labels, created, updated), then the body, then a section for
each comment. A hidden `<!-- driftgate:comment KEY -->` under its heading tells which comments are there already.

People may edit a file on the branch: what they add to the front matter or the text stays. Text from users can't end
the front matter, can't pass for a hidden mark, and holds nothing that a terminal would obey.
"""

import re
import unicodedata
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import quote

import yaml

from webhook.issues import Issue

MARKER = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,127}")

_INDEX_HEAD = "# Issues of driftgate\n\nOne a line, the newest first. Every change writes this file anew.\n\n"
_INDEX_LINE = re.compile(r"- \[(\d+)\]\(")
_HIDDEN = "<!-- driftgate:"
_NOT_TEXT = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")  # what a terminal obeys, and what UTF-8 can't say
_UNPRINTABLE = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True, slots=True)
class Page:
    """One issue's file: its front matter, and the Markdown below."""

    front: dict[str, Any]
    text: str

    @property
    def marker(self) -> str:
        """What the issue is known by."""
        return str(self.front.get("marker"))

    @property
    def is_closed(self) -> bool:
        """Whether the state says so."""
        return self.front.get("state") == "closed"

    def has_comment(self, key: str) -> bool:
        """Return whether there is a comment with this key."""
        return _hidden_comment(key) in self.text.splitlines()

    def commented(self, text: str, key: str, now: datetime) -> "Page":
        """Return the page with one comment more."""
        return self._with("Comment", f"{_hidden_comment(key)}\n\n{_clean(text)}", now)

    def closed(self, text: str, now: datetime) -> "Page":
        """Return the page closed, with `text` as the last word."""
        page = self._with("Closed", f"\n{_clean(text)}", now)
        return Page(page.front | {"state": "closed"}, page.text)

    def _with(self, title: str, section: str, now: datetime) -> "Page":
        heading = f"## {title} {now:%Y-%m-%d %H:%M:%S} UTC"
        return Page(self.front | {"updated": _stamp(now)}, f"{self.text.rstrip()}\n\n{heading}\n{section}\n")


def new_page(issue: Issue, number: int, now: datetime) -> Page:
    """Return the page of a new issue."""
    front = {
        "number": number,
        "marker": issue.marker,
        "title": issue.title,
        "state": "open",
        "labels": list(issue.labels),
        "created": _stamp(now),
        "updated": _stamp(now),
    }
    return Page(front, f"\n{_clean(issue.body)}\n")


def file_name(page: Page) -> str:
    """Return the file's name, as `0001-words-of-the-title.md`."""
    plain = unicodedata.normalize("NFKD", page.front["title"][:400]).lower()
    slug = "-".join(re.findall(r"[a-z0-9]+", plain))[:48].strip("-")
    return f"{page.front['number']:04d}-{slug or 'issue'}.md"


def encode(page: Page) -> bytes:
    """Return the page as the content of its file."""
    front = yaml.dump(page.front, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=2**31)
    return f"---\n{front}---\n{page.text}".encode()


def parse(content: bytes) -> Page:
    """Return the page in a file. Raises ValueError or yaml.YAMLError if its front matter is broken."""
    head, end, text = content.decode("utf-8", "replace").replace("\r\n", "\n").partition("\n---\n")
    if not end or not head.startswith("---\n"):
        raise ValueError("it must begin and end with a line ---")
    front = yaml.safe_load(head)
    if not isinstance(front, dict):
        raise ValueError("it is no map")  # noqa: TRY004 -- a broken file, not a wrong call
    return Page(front, text)


def index_with(index: bytes, path: str, page: Page) -> bytes:
    """Return the index with the line of this page set; `path` is where its file lies, seen from the index."""
    old = index.decode("utf-8", "replace").splitlines()
    lines = {int(found[1]): line for line in old if (found := _INDEX_LINE.match(line))}
    number = path.rpartition("/")[2].partition("-")[0]
    state, created = page.front.get("state"), str(page.front.get("created"))[:10]
    lines[int(number)] = f"- [{number}]({path}) {state}, {created}: {_as_code(str(page.front.get('title')))}"
    return (_INDEX_HEAD + "".join(f"{lines[key]}\n" for key in sorted(lines, reverse=True))).encode()


class _Dumper(yaml.SafeDumper):
    """Writes each value on a line of its own, so that none looks like the end of the front matter."""


def _one_line_a_value(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = '"' if len(text.splitlines()) > 1 else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _one_line_a_value)


def _hidden_comment(key: str) -> str:
    return f"{_HIDDEN}comment {quote(key, safe='', errors='surrogatepass')} -->"


def _clean(text: str) -> str:
    plain = _NOT_TEXT.sub(_UNPRINTABLE, text.replace("\r\n", "\n"))
    return plain.replace(_HIDDEN, "<!-- ").strip()


def _as_code(text: str) -> str:
    """Return `text` as Markdown on one line in which nothing links, mentions or formats."""
    line = " ".join(text.split()).replace("`", "'")[:160]
    return "`" + "".join(character if character.isprintable() else _UNPRINTABLE for character in line) + "`"


def _stamp(now: datetime) -> str:
    return f"{now:%Y-%m-%dT%H:%M:%SZ}"

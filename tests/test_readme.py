"""The README against the code: every setting, every default, every command that it names."""

import re
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest

from webhook.cli import SUBCOMMANDS
from webhook.config import Config, Section
from webhook.durations import print_duration
from webhook.policy import Policy
from webhook.registration import Endpoint, registration

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
CODE = "\n".join(re.findall(r"```sh\n(.*?)```", README, re.DOTALL) + re.findall(r"`[^`\n]+`", README))
MAKEFILE = (Path(__file__).parents[1] / "Makefile").read_text(encoding="utf-8")


def settings(section=Config, place=""):
    """Every setting as `break_glass.window`, with its default; a tool's are told in one row."""
    for field in msgspec.structs.fields(section):
        name = f"{place}{field.name}"
        if isinstance(field.type, type) and issubclass(field.type, Section) and not place.startswith("tools."):
            yield from settings(field.type, f"{name}.")
        else:
            yield name, field.default


def rows():
    """The table of settings: the names in the first cell, and the default in the second."""
    table = README.split("## Settings")[1].split("## ")[0]
    for line in table.splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        names = re.findall(r"`([^`]+)`", cells[0]) if cells else []
        defaults = re.findall(r"`([^`]+)`", cells[1]) if cells else []
        for number, name in enumerate(names):
            yield name, defaults[number] if len(defaults) == len(names) else ""


def test_every_setting_is_told():
    """A setting that the README does not name can't be found; one that is not there any more misleads."""
    told = {name for name, _ in rows()}
    there = {name for name, _ in settings()}

    assert told == there


@pytest.mark.parametrize(("name", "default"), [row for row in rows() if row[1]])
def test_every_default_is_told_right(name, default):
    """A default stands in `config.py`, and the README repeats it."""
    value = dict(settings())[name]
    if value is None:
        return  # told in words

    assert default == (print_duration(value) if isinstance(value, timedelta) else str(value))


@pytest.mark.parametrize(
    "command", sorted(set(re.findall(r"^driftgate ([a-z]+)|`driftgate ([a-z]+)", CODE, re.MULTILINE)))
)
def test_every_command_exists(command):
    """What the README tells people to type is there."""
    assert "".join(command) in SUBCOMMANDS


@pytest.mark.parametrize("target", sorted(set(re.findall(r"(?:^|`)make ([a-z0-9-]+)", README, re.MULTILINE))))
def test_every_target_exists(target):
    """So is every target of make."""
    assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE)


def test_the_table_of_webhooks_is_what_is_registered():
    """Which webhook is asked, and what happens while driftgate is down."""
    told = dict(re.findall(r"^\| `([a-z]+\.driftgate\.dev)` \|.*\(`(Fail|Ignore)`\) \|$", README, re.MULTILINE))
    entries = [w for m in registration(Policy(), Endpoint(ca_bundle=b"")) for w in m["webhooks"]]

    assert told == {entry["name"]: entry["failurePolicy"] for entry in entries}

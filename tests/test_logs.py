"""The form of the log."""

import json
import logging
import os
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from webhook import logs
from webhook.logs import Reported, log, told


def failing():
    raise KeyError("the value of a secret")


def test_a_line_is_one_object_of_json(capfd):
    """Times are RFC 3339 in UTC; what JSON has no form for is written as text; nothing breaks the line."""
    log("server.started", host="::1", port=8443, folder=Path("/tmp"), names=("a\nb",))

    line = json.loads(capfd.readouterr().out)
    assert datetime.fromisoformat(line.pop("time")).utcoffset() == timedelta(0)
    assert line == {"event": "server.started", "host": "::1", "port": 8443, "folder": "/tmp", "names": ["a\nb"]}


def test_a_line_that_cannot_be_written_is_lost(capfd):
    """Logging never raises for what it is given."""
    log("review.malformed", reason="\ud800")

    assert capfd.readouterr().out == ""


def test_a_reader_that_does_not_keep_up_loses_lines(monkeypatch):
    """Whole lines, and the writer does not wait."""
    reading, writing = os.pipe()
    monkeypatch.setattr(logs, "STANDARD_OUTPUT", writing)
    with os.fdopen(reading, "rb") as reader:
        with os.fdopen(writing, "wb"):
            logs.never_wait()
            for number in range(10_000):
                log("review.decided", number=number)
        lines = [json.loads(line) for line in reader]

    assert [line["number"] for line in lines] == list(range(len(lines)))
    assert 100 < len(lines) < 10_000


@pytest.fixture
def logger():
    """A library's logger, whose messages are ours to write."""
    found = logging.getLogger("library")
    found.handlers = [Reported()]
    yield found
    found.handlers = []


def test_an_exception_is_told_by_type_and_place(capfd, logger):
    """Neither its text nor a stack trace, for they may hold what was in an object."""
    try:
        failing()
    except KeyError as error:
        fields = told(error)
        logger.exception("It went %s\n", "wrong")

    line = json.loads(capfd.readouterr().out)
    assert (line["event"], line["message"], line["level"]) == ("server.reported", "It went wrong", "error")
    assert (line["error"], line["at"]) == (fields["error"], fields["at"])
    assert fields["error"] == "KeyError"
    assert fields["at"].count("tests/test_logs.py:") == 2

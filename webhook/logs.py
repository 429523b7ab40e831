"""Log lines: one JSON object a line on standard output, as `log("noun.verb", key=value)`.

What libraries say through `logging` comes out in the same form, as the event `server.reported`. An exception is told
by its type and the places it came through, never by its text or a stack trace: a text may hold parts of an object.
A line that can't be written is lost: logging never fails an answer, nor holds one up after `never_wait`.
"""

import contextlib
import logging
import os
import stat
from datetime import UTC, datetime
from types import TracebackType

import msgspec

STANDARD_OUTPUT = 1  # the descriptor itself: no buffer, no lock that a fork could copy while it is held
PLACES = 5  # innermost frames told of an exception

_encoder = msgspec.json.Encoder(enc_hook=str)


def log(event: str, **fields: object) -> None:
    """Write one line: the time, the event, and `fields`. Never raises because of what is in the fields."""
    now = datetime.now(tz=UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    with contextlib.suppress(OSError, UnicodeError):
        os.write(STANDARD_OUTPUT, _encoder.encode({"time": now, "event": event, **fields}) + b"\n")


def never_wait() -> None:
    """Lose lines where whoever reads them through a pipe does not keep up, instead of standing still with the pipe."""
    mode = os.fstat(STANDARD_OUTPUT).st_mode
    if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
        os.set_blocking(STANDARD_OUTPUT, False)


def told(error: BaseException) -> dict[str, str]:
    """Return the fields that tell of an exception: its type, and where it was raised (outermost place first)."""
    return {"error": type(error).__name__, "at": _places(error.__traceback__)}


def _places(trace: TracebackType | None) -> str:
    places: list[str] = []
    while trace is not None:
        path = trace.tb_frame.f_code.co_filename
        places.append(f"{'/'.join(path.split('/')[-2:])}:{trace.tb_lineno}")
        trace = trace.tb_next
    return " > ".join(places[-PLACES:])


class Reported(logging.Handler):
    """Turns what libraries log into lines of ours."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line. An exception that comes with the message is told by type and place."""
        error = record.exc_info[1] if record.exc_info else None
        log(
            "server.reported",
            level=record.levelname.lower(),
            logger=record.name,
            message=record.getMessage().strip(),
            **(told(error) if error else {}),
        )


def report_libraries() -> None:
    """Let the warnings and errors that any library logs come out as lines of ours."""
    logging.basicConfig(handlers=[Reported()], level=logging.WARNING, force=True)

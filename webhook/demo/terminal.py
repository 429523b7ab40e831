"""How the demo is told: steps, commands with what they print, progress.

In colour, and wrapped at words, on a terminal only; piped it is plain text, whole. Easy to get wrong: who reads may go
away (`driftgate demo | head`), and what has to be ended must still be ended then. So only the first word that reaches
nobody is an error.
"""

import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

import click

from webhook.errors import DriftgateError

_WORTH_TELLING = 1.0  # seconds
_PATIENCE = 30.0  # seconds


class Unexpected(DriftgateError):
    """A step did not go as it was told."""


class Terminal:
    """Standard output. `with` ends its last line."""

    def __init__(self) -> None:
        self.is_tty = sys.stdout.isatty()
        self._steps = 0
        self._is_gone = False
        self._since: float | None = None  # when the progress line began that has no end yet

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end_progress()

    def say(self, text: str = "") -> None:
        """Say something between the steps."""
        self._end_progress()
        self._write(text + "\n")

    def title(self, text: str) -> None:
        """Say what this is."""
        self.say(click.style(text, bold=True))

    def step(self, text: str) -> None:
        """Say what happens now, and why, in one line."""
        self._steps += 1
        self.say()
        self.say(click.style(f"# {self._steps}. {text}", bold=True))

    def command(self, text: str, note: str = "") -> None:
        """Show what is typed, and a note of where it comes from."""
        shown = click.style(f"$ {text}", fg="cyan")
        if note:
            fits = not self.is_tty or len(text) + len(note) + 6 <= _columns()
            shown += click.style(("  " if fits else "\n    ") + f"({note})", dim=True)
        self.say(shown)

    def output(self, text: str) -> None:
        """Show what a command printed."""
        self.say("\n".join(self._wrapped(line) for line in text.rstrip("\n").split("\n")))

    def progress(self, text: str) -> None:
        """Say what is being done; how long it took follows when the next thing is said."""
        self._end_progress()
        self._write(click.style(f"  {text}", dim=True))
        self._since = time.monotonic()

    def wait(self, what: str, is_so: Callable[[], bool]) -> None:
        """Wait until something is so, and say so if it takes long. Raises Unexpected after half a minute."""
        started, told = time.monotonic(), False
        while not is_so():
            waited = time.monotonic() - started
            if waited > _PATIENCE:
                raise Unexpected(f"waited {_PATIENCE:.0f} s in vain: {what}")
            if waited > _WORTH_TELLING and not told:
                told = True
                self.progress(f"waiting: {what}")
                self._since = started
            time.sleep(0.1)
        self._end_progress()

    def invite(self, first: Sequence[str], then: Sequence[tuple[str, str]]) -> None:
        """Say how to go on in another terminal: what to type first, what to try, why; and how to end it."""
        self.say()
        self.title("All this stays up. To go on by yourself, in another terminal:")
        self.say()
        for command in first:
            self.say("  " + click.style(command, fg="cyan"))
        for why, command in then:
            self.say(click.style(f"\n  # {why}\n", dim=True) + click.style(f"  {command}", fg="cyan"))
        self.say()
        self.title("Ctrl-C ends it.")

    def _end_progress(self) -> None:
        if self._since is not None:
            took = time.monotonic() - self._since
            self._since = None
            self._write(click.style(f" ... {took:.1f} s\n" if took >= _WORTH_TELLING else "\n", dim=True))

    def _wrapped(self, line: str) -> str:
        if not self.is_tty or len(line) <= _columns():
            return line
        return textwrap.fill(line, _columns(), subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)

    def _write(self, text: str) -> None:
        if self._is_gone:
            return
        try:
            click.echo(text, nl=False)
        except BrokenPipeError:
            self._is_gone = True
            raise


def _columns() -> int:
    return shutil.get_terminal_size().columns

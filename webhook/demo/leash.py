"""A server process that never outlives the Python process that started it, however that one ends.

`Leashed` starts this very file as a keeper, and the keeper starts the command. The keeper waits for the end of a
pipe whose other end its parent holds: the kernel closes that end when the parent exits, crashes or is killed with
SIGKILL, and the keeper then ends the command. Stopping in order is the same thing done on purpose.

Two more ways to lose one's parent are covered. A fork of the parent holds the pipe open too, so the keeper also looks
whether it still has the same parent. And where somebody kills every Python process at once, keepers
included, Linux is told to kill the command with its keeper.

Keeper and command have a session of their own, so that Ctrl-C in a terminal reaches only the parent, which then
stops its servers in the right order. The keeper imports the standard library alone, to start in milliseconds.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

GRACE = 4.0  # seconds from TERM to KILL
LOOK = 0.25  # seconds between two looks at parent and command
PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True, slots=True, kw_only=True)
class Leashed:
    """A running command. It ends with this process, or by `let_go` and `stop`."""

    name: str
    log: Path  # its standard output and error
    grace: float  # seconds from TERM to KILL
    _keeper: subprocess.Popen[bytes]

    @classmethod
    def start(
        cls,
        name: str,
        command: Sequence[str | Path],
        *,
        log: Path,
        environment: Mapping[str, str],
        grace: float = GRACE,
    ) -> Leashed:
        """Start `command` with exactly this environment; what it prints is appended to `log`."""
        with log.open("ab") as output:
            keeper = subprocess.Popen(
                [sys.executable, "-I", "-S", __file__, str(os.getpid()), str(grace), *map(str, command)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                start_new_session=True,
            )
        return cls(name=name, log=log, grace=grace, _keeper=keeper)

    @property
    def exit_code(self) -> int | None:
        """The command's exit code, as from a shell (128 + signal); None while it runs."""
        return self._keeper.poll()

    def let_go(self) -> None:
        """Have the command ended, without waiting for it."""
        if self._keeper.stdin is not None:
            self._keeper.stdin.close()

    def stop(self) -> None:
        """End the command and wait until it is gone: TERM, and KILL when `grace` is over."""
        self.let_go()
        try:
            self._keeper.wait(self.grace + 2)
        except subprocess.TimeoutExpired:
            os.killpg(self._keeper.pid, signal.SIGKILL)  # the keeper leads a process group of its own
            self._keeper.wait()

    def tail(self, lines: int = 20) -> str:
        """Return the last lines of the log."""
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


def keep(parent: int, command: Sequence[str], *, grace: float) -> int:
    """Run the command until it exits, or until process `parent` is gone; return its exit code, as a shell would."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        preexec_fn=_die_with_keeper if sys.platform == "linux" else None,  # noqa: PLW1509 -- a single thread
    )
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    while process.poll() is None and os.getppid() == parent:
        readable, _, _ = select.select([sys.stdin], [], [], LOOK)
        if readable:
            break
    process.terminate()  # does nothing to a process that has exited
    try:
        code = process.wait(grace)
    except subprocess.TimeoutExpired:
        process.kill()
        code = process.wait()
    return code if code >= 0 else 128 - code


def _die_with_keeper() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(keep(int(sys.argv[1]), sys.argv[3:], grace=float(sys.argv[2])))

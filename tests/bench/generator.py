"""The load generator, which is a small Go program: one in Python would be slower than what it measures.

It is built once for each version of its source, into the user's cache.
"""

import hashlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).parent / "load"
_PATIENCE = 60  # seconds beyond the length of a run


class CannotMeasure(Exception):
    """The generator or a server can't be built or run; the text says what to do."""


def cache_directory() -> Path:
    """Return the bench's folder in the user's cache; it need not exist."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not cache.is_absolute():  # unset, or not to be heeded, says the XDG base directory specification
        cache = Path.home() / ".cache"
    return cache / "driftgate" / "bench"


def build() -> Path:
    """Return the program, which is built if this version of it is not there yet. Raises CannotMeasure."""
    sources = [(SOURCE / name).read_bytes() for name in ("go.mod", "main.go")]
    program = cache_directory() / hashlib.sha256(b"\0".join(sources)).hexdigest()[:16] / "load"
    if program.exists():
        return program
    program.parent.mkdir(parents=True, exist_ok=True)
    part = program.with_name(f".load.{os.getpid()}.part")
    command = ["go", "build", "-trimpath", "-ldflags", "-s -w", "-o", str(part), "."]
    environment = os.environ | {"CGO_ENABLED": "0", "GOWORK": "off", "GOFLAGS": "-buildvcs=false"}
    try:
        built = subprocess.run(command, cwd=SOURCE, env=environment, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise CannotMeasure(
            "the load generator is built with Go, and there is no `go` on PATH: install Go 1.22 or newer"
            " (https://go.dev/dl) and run this again"
        ) from None
    if built.returncode != 0:
        raise CannotMeasure(f"the load generator can't be built:\n{built.stderr.strip()}")
    part.rename(program)
    return program


def run(program: Path, *, seconds: float, **options: object) -> dict[str, Any]:
    """Return what the generator found. `options` are its flags, with `_` for `-`. Raises CannotMeasure."""
    flags = [f"-{name.replace('_', '-')}={value}" for name, value in options.items()]
    try:
        done = subprocess.run(
            [program, f"-seconds={seconds}", *flags],
            capture_output=True,
            text=True,
            timeout=seconds + _PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise CannotMeasure("the load generator does not come to an end") from None
    if done.returncode != 0:
        raise CannotMeasure(done.stderr.strip())
    found: dict[str, Any] = json.loads(done.stdout)
    return found

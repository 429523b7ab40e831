"""`driftgate serve`: webhook and controller on one machine, with embedded stores."""

from pathlib import Path

import click

from webhook.cli.options import config_option

_PATIENCE = 30.0


@click.command()
@config_option
def serve(config_file: Path | None) -> None:
    """Run the webhook and the controller on one machine, with SQLite: for a laptop, a demo, a test.

    Both are processes of their own, as in a cluster. When one ends, so does the other.
    """
    import signal
    import subprocess
    import sys
    import threading

    from webhook.config import load

    load(config_file)  # refuse a bad file once, before anything is started
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    named = ["--config", str(config_file)] if config_file else []
    parts = [subprocess.Popen([sys.executable, "-m", "webhook", part, *named]) for part in ("webhook", "controller")]
    while not stop.wait(0.2) and all(part.poll() is None for part in parts):
        pass
    for part in parts:
        part.terminate()
    codes = []
    for part in parts:
        try:
            codes.append(part.wait(timeout=_PATIENCE))
        except subprocess.TimeoutExpired:
            part.kill()
            codes.append(part.wait())
    sys.exit(0 if stop.is_set() else max(map(abs, codes), default=1) or 1)

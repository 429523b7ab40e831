"""`driftgate demo`: the main job, shown: with a real control plane if there is one, else with recorded reviews."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

if TYPE_CHECKING:
    from collections.abc import Iterator

    from webhook.demo.control_plane import Binaries
    from webhook.demo.recorded import Recorded
    from webhook.demo.story import Story
    from webhook.demo.terminal import Terminal

_NO_CONTROL_PLANE = """\
There is no control plane here. For the real thing: make control-plane (once, about twelve minutes),
or set $KUBEBUILDER_ASSETS to a folder with etcd, kube-apiserver and kubectl. Until then:
"""
_SOON = 10.0  # seconds
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@click.command()
@click.option("--once", is_flag=True, help="End after the last step, instead of staying up.")
@click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False),
    help="Keep everything in this new folder; by default in a temporary one, which goes at the end.",
)
@click.option("--recorded", is_flag=True, help="With recorded reviews, even where there is a control plane.")
def demo(*, once: bool, directory: Path | None, recorded: bool) -> None:
    """Show what driftgate does, step by step, with real commands and their real output.

    With a control plane ($KUBEBUILDER_ASSETS, or what `make control-plane` built) driftgate is put in front of it;
    without one, recorded AdmissionReviews are sent to it over HTTPS. Ctrl-C ends it, and all that it started.
    """
    from webhook.demo.control_plane import ControlPlaneError, find_binaries
    from webhook.demo.terminal import Terminal

    if shutil.which("git") is None:
        raise click.ClickException("git is not installed: the demo keeps manifests and issues in a Git repository")
    _not_by_a_proxy()
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, _end)
    try:
        binaries = None if recorded else find_binaries()
        if binaries is None and not recorded:
            click.echo(_NO_CONTROL_PLANE)
        with (
            _folder(directory) as folder,
            _no_child_left(),
            Terminal() as terminal,
            _show(binaries, folder, terminal) as show,
        ):
            show.tell()
            if not once:
                show.invite()
                _stay()
            _ignore_signals()
    except KeyboardInterrupt:
        pass
    except ControlPlaneError as error:
        raise click.ClickException(str(error)) from None


def _show(binaries: Binaries | None, folder: Path, terminal: Terminal) -> Story | Recorded:
    from webhook.demo.recorded import Recorded
    from webhook.demo.story import Story

    return Recorded(folder, terminal) if binaries is None else Story(binaries, folder, terminal)


@contextmanager
def _folder(named: Path | None) -> Iterator[Path]:
    """Give an empty folder: the one that is named, which stays, or a temporary one, which stays after a failure."""
    from webhook.demo.control_plane import ControlPlaneError
    from webhook.errors import DriftgateError

    if named is not None:
        named.mkdir(parents=True, exist_ok=True)
        if any(named.iterdir()):
            raise click.ClickException(f"{named} is not empty: name a new folder")
        yield named.absolute()
        return
    folder, keep = Path(tempfile.mkdtemp(prefix="driftgate-demo-")), False
    try:
        yield folder
    except (ControlPlaneError, DriftgateError):
        keep = True
        click.echo(f"The logs are in {folder}, which is yours to remove.", err=True)
        raise
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _no_child_left() -> Iterator[None]:
    """Wait for a command that a signal caught while it was being started: nobody else does, and it soon ends itself."""
    try:
        yield
    finally:
        deadline = time.monotonic() + _SOON
        with suppress(ChildProcessError):  # there is none
            while time.monotonic() < deadline:
                if os.waitpid(-1, os.WNOHANG) == (0, 0):
                    time.sleep(0.05)


def _stay() -> NoReturn:
    """Wait for a signal. One that comes just before `signal.pause` would be waited for in vain; so it is looked for."""
    while True:
        time.sleep(0.5)


def _end(*_: object) -> None:
    _ignore_signals()  # once is enough: ending takes some seconds, and must not be ended
    raise KeyboardInterrupt


def _ignore_signals() -> None:
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _not_by_a_proxy() -> None:
    """Have loopback reached directly, by the programs that are started too, whatever proxies this machine uses."""
    for name in ("no_proxy", "NO_PROXY"):
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), "localhost,127.0.0.1"]))

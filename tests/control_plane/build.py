"""Build the control plane of the tests, the demo and the recordings from pinned Go modules.

`make control-plane` runs this before anything is installed, so it needs Python's standard library and Go, no more.
The versions are those of the go.mod files beside this one. What is built goes into the user's cache, in a folder
named after the versions, where `webhook.demo.control_plane` looks for it.

Every binary appears under its name only once it is whole: an interrupted run goes on where it stopped, and a
second run at the same time waits for the first.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

HERE = Path(__file__).resolve().parent
STAGES = "kwok-stages.yaml"
STAGE_FOLDERS = ("node/fast", "node/heartbeat", "pod/fast")  # below kustomize/stage of the module
EXPECTED = "about twelve minutes on two cores the first time, 600 MB of downloads and 5 GB in Go's caches"
BEAT_TERMINAL = 1.0  # seconds between signs of life
BEAT_LOG = 30.0
TAIL = 30  # lines of a failed build's output


class BuildError(Exception):
    """Something a person has to do something about; the text says what."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """One command: the folder of its go.mod, its Go package, and the variables that tell it its version."""

    name: str
    module: str
    package: str
    stamps: Mapping[str, str]


def main() -> int:
    """Build what is missing and say where it is; 1 if that failed, 130 if it was interrupted."""
    signal.signal(signal.SIGTERM, _interrupt)
    directory = cache_directory()
    try:
        if missing(directory):
            _build_missing(directory)
    except BuildError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted: what is built is kept, the next run goes on from there", file=sys.stderr)
        return 130
    print(f"The control plane is in {directory}\nNext: make demo, or make e2e")
    if os.environ.get("KUBEBUILDER_ASSETS"):
        print("But KUBEBUILDER_ASSETS is set, and the binaries it names come first: unset it to use these.")
    return 0


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


# What is to be built, and where it goes


def required(module: str, path: str) -> str:
    """Return the version (as in `v1.2.3`) at which the go.mod of folder `module` requires the module `path`."""
    found = re.search(rf"^(?:require)?\s+{re.escape(path)} (v\S+)", _go_mod(module), re.MULTILINE)
    if found is None:
        message = f"{module}/go.mod does not require {path}"
        raise BuildError(message)
    return found[1]


def go_version(module: str) -> tuple[int, ...]:
    """Return the Go version that the go.mod of folder `module` asks for."""
    found = re.search(r"^go ([\d.]+)$", _go_mod(module), re.MULTILINE)
    assert found is not None, "go.mod files have a go line"
    return _numbers(found[1])


def _go_mod(module: str) -> str:
    return (HERE / module / "go.mod").read_text(encoding="utf-8")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version))


def tools() -> list[Tool]:
    """Return all commands, the quick ones first."""
    kubernetes = required("kubernetes", "k8s.io/kubernetes")
    major, minor, _ = kubernetes.removeprefix("v").split(".", maxsplit=2)
    package = "k8s.io/component-base/version"
    version = {
        f"{package}.gitVersion": kubernetes,
        f"{package}.gitMajor": major,
        f"{package}.gitMinor": minor,
        f"{package}.gitTreeState": "clean",
    }
    kwok_version = {"sigs.k8s.io/kwok/pkg/consts.Version": required("kwok", "sigs.k8s.io/kwok")}
    return [
        Tool(name="etcd", module="kubernetes", package="go.etcd.io/etcd/server/v3", stamps={}),
        *(
            Tool(name=name, module="kubernetes", package=f"k8s.io/kubernetes/cmd/{name}", stamps=version)
            for name in ("kubectl", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
        ),
        Tool(name="kwok", module="kwok", package="sigs.k8s.io/kwok/cmd/kwok", stamps=kwok_version),
    ]


def cache_directory() -> Path:
    """Return the folder of exactly these versions in the user's cache; it need not exist."""
    key = "_".join(
        (
            f"kubernetes-{required('kubernetes', 'k8s.io/kubernetes')}",
            f"etcd-{required('kubernetes', 'go.etcd.io/etcd/server/v3')}",
            f"kwok-{required('kwok', 'sigs.k8s.io/kwok')}",
        )
    )
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not cache.is_absolute():  # unset, or not to be heeded, says the XDG base directory specification
        cache = Path.home() / ".cache"
    return cache / "driftgate" / "control-plane" / key


def missing(directory: Path) -> list[str]:
    """Return the names of the files that are still to be made."""
    return [name for name in (*(tool.name for tool in tools()), STAGES) if not (directory / name).exists()]


# Building


def _build_missing(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    with _only_one(directory / ".lock"):
        names = missing(directory)  # asked again: another run may have built them while this one waited
        if not names:
            return
        _check_go()
        for left_over in directory.glob(".*.part"):
            left_over.unlink()
        print(f"Building {', '.join(names)}: {EXPECTED}.")
        print("Interrupting is harmless: the next run goes on from there.", flush=True)
        wanted = tools()
        for number, tool in enumerate(wanted, start=1):
            if tool.name in names:
                _build(tool, directory, f"[{number}/{len(wanted)}] {tool.name}")
        if STAGES in names:
            _write_stages(directory)


@contextmanager
def _only_one(lock: Path) -> Iterator[None]:
    """Hold the lock file; the kernel lets go of it however the process ends."""
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("Another run is building the same: waiting for it.", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _check_go() -> None:
    wanted = max(go_version("kubernetes"), go_version("kwok"))
    ways_out = (
        f"Install Go {'.'.join(map(str, wanted))} or newer (https://go.dev/dl) and run this again,\n"
        "or set KUBEBUILDER_ASSETS to a folder with etcd, kube-apiserver and kubectl "
        "(`setup-envtest use -p path` fetches one)."
    )
    try:
        asked = _go("kubernetes", "env", "GOVERSION")
    except FileNotFoundError:
        message = f"The control plane is built with Go, and there is no `go` on PATH.\n{ways_out}"
        raise BuildError(message) from None
    version = asked.stdout.strip()
    if asked.returncode != 0 or _numbers(version) < wanted:
        message = f"This Go is too old for the control plane: {version or asked.stderr.strip()}\n{ways_out}"
        raise BuildError(message)


def _go(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["go", *arguments], cwd=HERE / module, env=_environment(), capture_output=True, text=True, check=False
    )


def _environment() -> dict[str, str]:
    """Return the caller's environment without what would build something else."""
    kept = {name: value for name, value in os.environ.items() if name not in {"GOOS", "GOARCH", "GOBIN"}}
    return kept | {"CGO_ENABLED": "0", "GOWORK": "off"}


def _build(tool: Tool, directory: Path, title: str) -> None:
    """Build one command, with signs of life; its file appears when it is whole."""
    part = directory / f".{tool.name}.{os.getpid()}.part"
    log = directory / f"{tool.name}.log"
    stamps = " ".join(f"-X {name}={value}" for name, value in tool.stamps.items())
    command = ["go", "build", "-mod=readonly", "-buildvcs=false", "-trimpath"]
    command += ["-ldflags", f"-s -w {stamps}", "-o", str(part), tool.package]
    started = time.monotonic()
    with log.open("w") as output:
        process = subprocess.Popen(
            command, cwd=HERE / tool.module, env=_environment(), stdout=output, stderr=subprocess.STDOUT
        )
        try:
            code = _wait(process, log, title)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)  # lets go remove its own temporary files
                process.wait()
    if code != 0:
        message = f"{title} failed:\n{_tail(log, TAIL)}\nAll of its output: {log}"
        raise BuildError(message)
    log.unlink()
    part.rename(directory / tool.name)
    size = (directory / tool.name).stat().st_size / 1e6
    _say(f"{title}: {_clock(time.monotonic() - started)}, {size:.0f} MB", done=True)


def _wait(process: subprocess.Popen[bytes], log: Path, title: str) -> int:
    started = time.monotonic()
    beat = BEAT_TERMINAL if sys.stdout.isatty() else BEAT_LOG
    _say(f"{title} ...")
    while True:
        try:
            return process.wait(beat)
        except subprocess.TimeoutExpired:
            latest = _tail(log, 1)
            doing = latest.removeprefix("go: ") if latest.startswith("go: downloading") else "compiling"
            _say(f"{title} {_clock(time.monotonic() - started)} {doing}")


def _say(line: str, *, done: bool = False) -> None:
    """Print a line; on a terminal each one takes the place of the one before, until one is `done`."""
    if sys.stdout.isatty():
        columns = os.get_terminal_size(sys.stdout.fileno()).columns or 80
        print(f"\r\x1b[K{line[: columns - 1]}", end="\n" if done else "", flush=True)
    else:
        print(line, flush=True)


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def _tail(file: Path, lines: int) -> str:
    return "\n".join(file.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


def _write_stages(directory: Path) -> None:
    """Write the stages (what kwok does with nodes and pods) of kwok's own module as one file of several documents."""
    download = _go("kwok", "mod", "download", "-json", "sigs.k8s.io/kwok")
    if download.returncode != 0:
        message = f"kwok's stages can't be fetched:\n{download.stdout}{download.stderr}"
        raise BuildError(message)
    stages = Path(json.loads(download.stdout)["Dir"]) / "kustomize" / "stage"
    files = [file for folder in STAGE_FOLDERS for file in sorted((stages / folder).glob("*.yaml"))]
    documents = [file.read_text(encoding="utf-8").strip() for file in files if file.name != "kustomization.yaml"]
    part = directory / f".{STAGES}.{os.getpid()}.part"
    part.write_text("\n---\n".join(documents) + "\n", encoding="utf-8")
    part.rename(directory / STAGES)


if __name__ == "__main__":
    sys.exit(main())

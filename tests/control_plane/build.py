"""Build the real parts of the tests, the demo and the recordings from pinned Go modules.

    python3 build.py                the control plane
    python3 build.py gitops-tools   Argo CD and Flux

`make control-plane` runs this before anything is installed, so it needs Python's standard library and Go, no more.
The versions are those of the go.mod files beside this one. What is built goes into the user's cache, in a folder
named after the versions, where `webhook.demo.control_plane` and `tests.e2e.gitops` look for it.

Every binary appears under its name only once it is whole: an interrupted run goes on where it stopped, and a
second run at the same time waits for the first.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

HERE = Path(__file__).resolve().parent
CONTROL_PLANE = "control-plane"
GITOPS_TOOLS = "gitops-tools"
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Documents:
    """YAML files of a Go module, to be one file of several documents."""

    name: str
    module: str  # the folder of the go.mod that requires the Go module
    path: str
    files: Sequence[str]  # patterns below the module's own folder; a kustomization.yaml is left out


@dataclass(frozen=True, slots=True, kw_only=True)
class Kit:
    """What is built together and used together."""

    noun: str
    key: Mapping[str, str]  # of its folder in the cache: what, and its version
    tools: Sequence[Tool]  # the quick ones first
    documents: Sequence[Documents]
    expected: str
    instead: str  # of building it
    next: str

    @property
    def parts(self) -> list[Tool | Documents]:
        """The files that it consists of."""
        return [*self.tools, *self.documents]


def main(arguments: Sequence[str]) -> int:
    """Build what is missing and say where it is; 1 if that failed, 2 if it can't be asked, 130 if interrupted."""
    signal.signal(signal.SIGTERM, _interrupt)
    name = arguments[0] if arguments else CONTROL_PLANE
    if name not in KITS or len(arguments) > 1:
        print(f"usage: build.py [{'|'.join(KITS)}]", file=sys.stderr)
        return 2
    kit, directory = KITS[name](), cache_directory(name)
    try:
        if missing(directory, name):
            _build_missing(name, kit, directory)
    except BuildError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted: what is built is kept, the next run goes on from there", file=sys.stderr)
        return 130
    print(f"Ready, {kit.noun}: {directory}\nNext: {kit.next}")
    for line in _but(name):
        print(line)
    return 0


def _but(name: str) -> Iterator[str]:
    """Yield what still keeps somebody from using what was built."""
    if name == CONTROL_PLANE and os.environ.get("KUBEBUILDER_ASSETS"):
        yield "But KUBEBUILDER_ASSETS is set, and the binaries it names come first: unset it to use these."
    if name == GITOPS_TOOLS and shutil.which("redis-server") is None:
        yield "But Argo CD needs a redis-server on PATH, and there is none: apt-get install redis-server."


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


def control_plane() -> Kit:
    """Return what an API server with nodes and running pods takes."""
    kubernetes, kwok = required("kubernetes", "k8s.io/kubernetes"), required("kwok", "sigs.k8s.io/kwok")
    major, minor, _ = kubernetes.removeprefix("v").split(".", maxsplit=2)
    package = "k8s.io/component-base/version"
    version = {
        f"{package}.gitVersion": kubernetes,
        f"{package}.gitMajor": major,
        f"{package}.gitMinor": minor,
        f"{package}.gitTreeState": "clean",
    }
    kwok_version = {"sigs.k8s.io/kwok/pkg/consts.Version": kwok}
    stages = ("node/fast", "node/heartbeat", "pod/fast")
    return Kit(
        noun="the control plane",
        key={"kubernetes": kubernetes, "etcd": required("kubernetes", "go.etcd.io/etcd/server/v3"), "kwok": kwok},
        tools=[
            Tool(name="etcd", module="kubernetes", package="go.etcd.io/etcd/server/v3", stamps={}),
            *(
                Tool(name=name, module="kubernetes", package=f"k8s.io/kubernetes/cmd/{name}", stamps=version)
                for name in ("kubectl", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
            ),
            Tool(name="kwok", module="kwok", package="sigs.k8s.io/kwok/cmd/kwok", stamps=kwok_version),
        ],
        documents=[
            Documents(  # what kwok does with nodes and pods
                name="kwok-stages.yaml",
                module="kwok",
                path="sigs.k8s.io/kwok",
                files=[f"kustomize/stage/{folder}/*.yaml" for folder in stages],
            )
        ],
        expected="about twelve minutes on two cores the first time, 600 MB of downloads and 5 GB in Go's caches",
        instead="or set KUBEBUILDER_ASSETS to a folder with etcd, kube-apiserver and kubectl "
        "(`setup-envtest use -p path` fetches one).",
        next="make demo, or make e2e",
    )


def gitops_tools() -> Kit:
    """Return Argo CD (one binary of many names) and Flux's kustomize-controller, and what a cluster has to know."""
    argocd, flux, sources = (
        "github.com/argoproj/argo-cd/v3",
        "github.com/fluxcd/kustomize-controller",
        "github.com/fluxcd/source-controller",
    )
    argocd_version = {f"{argocd}/common.version": required("argocd", argocd).removeprefix("v")}
    return Kit(
        noun="Argo CD and Flux",
        key={
            "argo-cd": required("argocd", argocd),
            "kustomize-controller": required("flux", flux),
            "source-controller": required("flux-sources", sources),
        },
        tools=[
            Tool(name="kustomize-controller", module="flux", package=flux, stamps={}),
            Tool(name="argocd", module="argocd", package=f"{argocd}/cmd", stamps=argocd_version),
        ],
        documents=[
            Documents(name="flux-crds.yaml", module="flux", path=flux, files=["config/crd/bases/*.yaml"]),
            Documents(  # of all sources: it starts with none missing
                name="flux-source-crds.yaml", module="flux-sources", path=sources, files=["config/crd/bases/*.yaml"]
            ),
            Documents(name="argocd-crds.yaml", module="argocd", path=argocd, files=["manifests/crds/*.yaml"]),
            Documents(
                name="argocd-config.yaml",
                module="argocd",
                path=argocd,
                files=["manifests/base/config/argocd-*.yaml"],
            ),
        ],
        expected="about ten minutes on two cores the first time, 600 MB of downloads and 6 GB in Go's caches",
        instead="or do without: the tests of the real GitOps tools are skipped then.",
        next="make e2e",
    )


KITS: Mapping[str, Callable[[], Kit]] = {CONTROL_PLANE: control_plane, GITOPS_TOOLS: gitops_tools}


def cache_directory(name: str = CONTROL_PLANE) -> Path:
    """Return the folder of exactly these versions in the user's cache; it need not exist."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not cache.is_absolute():  # unset, or not to be heeded, says the XDG base directory specification
        cache = Path.home() / ".cache"
    key = "_".join(f"{what}-{version}" for what, version in KITS[name]().key.items())
    return cache / "driftgate" / name / key


def missing(directory: Path, name: str = CONTROL_PLANE) -> list[str]:
    """Return the names of the files that are still to be made."""
    return [part.name for part in KITS[name]().parts if not (directory / part.name).exists()]


# Building


def _build_missing(name: str, kit: Kit, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    with _only_one(directory / ".lock"):
        names = missing(directory, name)  # asked again: another run may have built them while this one waited
        if not names:
            return
        _check_go(kit)
        for left_over in directory.glob(".*.part"):
            left_over.unlink()
        print(f"Building {', '.join(names)}: {kit.expected}.")
        print("Interrupting is harmless: the next run goes on from there.", flush=True)
        for number, tool in enumerate(kit.tools, start=1):
            if tool.name in names:
                _build(tool, directory, f"[{number}/{len(kit.tools)}] {tool.name}")
        for documents in kit.documents:
            if documents.name in names:
                _write_documents(documents, directory)


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


def _check_go(kit: Kit) -> None:
    modules = sorted({part.module for part in kit.parts})
    wanted = max(go_version(module) for module in modules)
    ways_out = (
        f"Install Go {'.'.join(map(str, wanted))} or newer (https://go.dev/dl) and run this again,\n{kit.instead}"
    )
    try:
        asked = _go(modules[0], "env", "GOVERSION")
    except FileNotFoundError:
        message = f"Go builds {kit.noun}, and there is no `go` on PATH.\n{ways_out}"
        raise BuildError(message) from None
    version = asked.stdout.strip()
    if asked.returncode != 0 or _numbers(version) < wanted:
        message = f"This Go is too old for {kit.noun}: {version or asked.stderr.strip()}\n{ways_out}"
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


def _write_documents(documents: Documents, directory: Path) -> None:
    """Write what a module's own files say as one file of several documents."""
    version = required(documents.module, documents.path)
    download = _go(documents.module, "mod", "download", "-json", f"{documents.path}@{version}")
    if download.returncode != 0:
        message = f"{documents.name} can't be made:\n{download.stdout}{download.stderr}"
        raise BuildError(message)
    module = Path(json.loads(download.stdout)["Dir"])
    files = [file for pattern in documents.files for file in sorted(module.glob(pattern))]
    contents = [file.read_text(encoding="utf-8").strip() for file in files if file.name != "kustomization.yaml"]
    part = directory / f".{documents.name}.{os.getpid()}.part"
    part.write_text("\n---\n".join(contents) + "\n", encoding="utf-8")
    part.rename(directory / documents.name)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

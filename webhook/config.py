"""The configuration: one YAML file into one frozen `Config`; every default stands here, with its unit.

Unknown keys are refused and the nearest known one is named; a wrong value is refused with its place in the file.
Durations are written as `90s`, `30m`, `1h`, `1h30m`. Secrets never stand in the file: it names files that hold them.
This is the only module that reads the environment (`DRIFTGATE_CONFIG`).
"""

import difflib
import os
import re
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec
import yaml

from webhook.durations import parse_duration
from webhook.errors import ConfigError
from webhook.managed import ARGOCD, FLUX, PUSH, Identity, with_settings
from webhook.policy import TOLERATED, BreakGlassPolicy, Mode, Policy


class FailMode(StrEnum):
    """What is answered when a write can't be judged."""

    CLOSED = "closed"
    OPEN = "open"


class TrackerKind(StrEnum):
    """Where issues are filed."""

    LOCAL = "local"
    NONE = "none"


class Section(msgspec.Struct, frozen=True, kw_only=True):
    """A part of the file. Keys that are left out have their default."""


class ToolSettings(Section, frozen=True, kw_only=True):
    """How one GitOps tool is recognised, on top of what the tool itself settles (`managed.py`)."""

    enabled: bool = True
    reconcilers: tuple[str, ...] = ()
    """User names, or `group:NAME`, that count as this tool's reconcilers, besides its own."""
    impersonated: tuple[str, ...] = ()
    """Service accounts that this tool writes as by impersonation (no uid in its reviews)."""
    field_managers: tuple[str, ...] = ()
    """Field managers whose fields count as declared, besides the tool's own."""


class Tools(Section, frozen=True, kw_only=True):
    """The GitOps tools."""

    argocd: ToolSettings = ToolSettings()
    flux: ToolSettings = ToolSettings()
    push: ToolSettings = ToolSettings()


class BreakGlassSettings(Section, frozen=True, kw_only=True):
    """Who may break the glass, and for how long. The right itself is RBAC: verb `break-glass`."""

    reason_pattern: str = r"\S.{7,}"
    """A regular expression that a reason must match as a whole."""
    reason_hint: str = "at least eight characters that say why"
    """What a refused person is told about the pattern."""
    window: timedelta = timedelta(hours=1)
    longest_window: timedelta = timedelta(hours=8)
    excluded_kinds: tuple[str, ...] = ()
    """Kinds for which there is no break-glass, as `Kind` or `Kind.group`."""
    key_file: Path = Path("/etc/driftgate/seal/key")
    """The key that seals stamps: at least 32 bytes, the same for webhook and controller."""


class TrackerSettings(Section, frozen=True, kw_only=True):
    """Where issues are filed."""

    kind: TrackerKind = TrackerKind.LOCAL
    repository: Path | None = None
    """The Git repository of a `local` tracker; by default `issues.git` in the state directory."""


class ServerSettings(Section, frozen=True, kw_only=True):
    """How the webhook listens."""

    host: str = "0.0.0.0"  # noqa: S104 -- a pod is reached by its own address
    port: int = 8443
    certificates: Path = Path("/etc/driftgate/certificates")
    """The folder with `tls.crt`, `tls.key` and `ca.crt`."""
    workers: int = 1
    """Worker processes. Kept-alive connections stick to a worker: more replicas serve better than more workers."""
    max_connections: int = 512
    """Connections a worker serves at once; beyond it the answer is 503 with Retry-After."""
    body_timeout: timedelta = timedelta(seconds=4)
    drain: timedelta = timedelta(seconds=10)
    """How long open connections are still answered after a signal to stop."""


class Config(Section, frozen=True, kw_only=True):
    """Everything that can be set."""

    mode: Mode = Mode.ENFORCE
    cluster: str = ""
    """A name for this cluster in records and issues."""
    fail: FailMode = FailMode.CLOSED
    tools: Tools = Tools()
    people: tuple[str, ...] = (
        "system:serviceaccount:argocd:argocd-server",
        "system:serviceaccount:kubernetes-dashboard:kubernetes-dashboard",
        "system:serviceaccount:headlamp:headlamp",
    )
    """Service accounts through which people write: web interfaces."""
    exempt: tuple[str, ...] = ()
    """User names, or `group:NAME`, whose writes are never looked at."""
    tolerated: tuple[str, ...] = ()
    """Paths that anybody may change, besides those of `declared.py`; as printed in a denial."""
    break_glass: BreakGlassSettings = BreakGlassSettings()
    tracker: TrackerSettings = TrackerSettings()
    server: ServerSettings = ServerSettings()
    state_directory: Path = Path("/var/lib/driftgate")
    """Where the outbox, the ledger and local issues are kept."""
    controller_identity: str = "system:serviceaccount:driftgate:driftgate-controller"
    """The user name as which driftgate's own controller writes."""
    kubeconfig: Path | None = None
    """How to reach the cluster; by default as kubectl does, and inside a pod by its service account."""
    cluster_timeout: timedelta = timedelta(seconds=2)
    """How long one question to the API server may take while a write waits."""

    @property
    def outbox(self) -> Path:
        """The folder of the outbox's segment files."""
        return self.state_directory / "outbox"

    @property
    def ledger(self) -> Path:
        """The ledger's SQLite file."""
        return self.state_directory / "ledger.sqlite"

    @property
    def issues(self) -> Path:
        """The repository of a local tracker."""
        return self.tracker.repository or self.state_directory / "issues.git"


def load(path: Path | None = None) -> Config:
    """Return the configuration in `path`, else in the file that $DRIFTGATE_CONFIG names, else all defaults.

    Raises ConfigError if the file can't be read, is no YAML, or holds what we don't know.
    """
    named = path or (Path(value) if (value := os.environ.get("DRIFTGATE_CONFIG")) else None)
    if named is None:
        return Config()
    try:
        text = named.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"the configuration {named} can't be read: {error}") from None
    return parse(text, source=str(named))


def parse(text: str, *, source: str = "configuration") -> Config:
    """Return the configuration that the YAML `text` holds; `source` names it in errors. Raises ConfigError."""
    try:
        settings = yaml.load(text, _Loader)  # noqa: S506 -- a safe loader, below
    except (yaml.YAMLError, RecursionError, ValueError, TypeError) as error:
        raise ConfigError(f"{source}: {error}") from None
    if settings is None:
        return Config()
    known = _known_settings(settings, Config, source, "")
    try:
        config = msgspec.convert(known, Config, builtin_types=(timedelta,), dec_hook=_decode_path)
    except (msgspec.ValidationError, ValueError) as error:
        raise ConfigError(f"{source}: {str(error).replace('`$.', '`')}") from None
    return _checked(config, source)


def _checked(config: Config, source: str) -> Config:
    settings = config.break_glass
    try:
        re.compile(settings.reason_pattern)
    except re.error as error:
        raise ConfigError(f"{source}: break_glass.reason_pattern is no regular expression: {error}") from None
    if settings.window > settings.longest_window:
        raise ConfigError(f"{source}: break_glass.window is longer than break_glass.longest_window")
    if min(settings.window, config.cluster_timeout, config.server.body_timeout) <= timedelta(0):
        raise ConfigError(f"{source}: break_glass.window, cluster_timeout and body_timeout must be longer than 0s")
    if not 0 <= config.server.port < 65536:
        raise ConfigError(f"{source}: server.port must be from 0 (any free one) to 65535")
    if min(config.server.workers, config.server.max_connections) < 1:
        raise ConfigError(f"{source}: server.workers and server.max_connections must be at least 1")
    if wrong := [path for path in config.tolerated if not path.startswith((".", "["))]:
        raise ConfigError(
            f"{source}: tolerated: {wrong[0]!r} is no path; write it as a denial prints it: .spec.replicas"
        )
    if any(name in {"", "group:"} for name in config.exempt):
        raise ConfigError(f"{source}: exempt: a name is empty")
    return config


class _Loader(yaml.SafeLoader):
    """YAML without duplicate keys and without aliases. The C loader can't be told, and the file is small."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not allowed here")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key.value, str):
                raise yaml.YAMLError(f"line {key.start_mark.line + 1}: a key is a word")
            if key.value in keys:
                raise yaml.YAMLError(f"line {key.start_mark.line + 1}: the key {key.value!r} stands here twice")
            keys.add(key.value)
        return super().construct_mapping(node, deep)


def _known_settings(settings: Any, section: type[msgspec.Struct], source: str, place: str) -> dict[str, Any]:
    """Return the settings with durations read; raise ConfigError for a key that `section` does not have."""
    if not isinstance(settings, dict):
        raise ConfigError(f"{source}: {place.rstrip('.') or 'the file'} must be a map of settings")
    fields = {field.name: field.type for field in msgspec.structs.fields(section)}
    known: dict[str, Any] = {}
    for key, value in settings.items():
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1)
            hint = f'did you mean "{place}{near[0]}"?' if near else f"known here: {', '.join(sorted(fields))}"
            raise ConfigError(f'{source}: there is no setting "{place}{key}"; {hint}')
        kind = fields[key]
        if isinstance(kind, type) and issubclass(kind, Section):
            known[key] = _known_settings(value, kind, source, f"{place}{key}.")
        elif kind is timedelta:
            known[key] = _known_duration(value, source, place + key)
        else:
            known[key] = value
    return known


def _known_duration(value: Any, source: str, place: str) -> timedelta:
    try:
        return parse_duration(str(value))
    except ValueError as error:
        raise ConfigError(f"{source}: {place}: {error}") from None


def _decode_path(kind: type, value: Any) -> Path:
    if issubclass(kind, Path) and isinstance(value, str):
        return Path(value).expanduser()
    raise ValueError(f"{value!r} is no {kind.__name__}")


def policy_of(config: Config) -> Policy:
    """Return what `config` says about deciding."""
    tools = ((ARGOCD, config.tools.argocd), (FLUX, config.tools.flux), (PUSH, config.tools.push))
    asked = config.break_glass
    return Policy(
        mode=config.mode,
        tools=tuple(
            with_settings(
                tool,
                reconcilers=settings.reconcilers,
                impersonated=settings.impersonated,
                field_managers=settings.field_managers,
            )
            for tool, settings in tools
            if settings.enabled
        ),
        people=frozenset(config.people),
        exempt=tuple(Identity(name=name) for name in config.exempt),
        tolerated=(*TOLERATED, *config.tolerated),
        break_glass=BreakGlassPolicy(
            reason_pattern=asked.reason_pattern,
            reason_hint=asked.reason_hint,
            window=asked.window,
            longest_window=asked.longest_window,
            excluded_kinds=frozenset(asked.excluded_kinds),
        ),
        controller=config.controller_identity,
    )


def read_seal_key(path: Path) -> bytes:
    """Return the key that seals stamps. Raises ConfigError if it is missing or too short."""
    try:
        key = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"the seal key {path} can't be read ({error.strerror}); make one: driftgate certs --seal-key {path}"
        ) from None
    if len(key) < 32:
        raise ConfigError(f"the seal key {path} is shorter than 32 bytes; make one: driftgate certs --seal-key {path}")
    return key

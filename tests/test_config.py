"""The configuration: defaults, what is read, and that whatever is wrong is said with its place."""

from datetime import timedelta
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from webhook.config import Config, FailMode, TrackerKind, load, parse, policy_of, read_seal_key
from webhook.durations import parse_duration, print_duration
from webhook.errors import ConfigError
from webhook.managed import Identity
from webhook.policy import TOLERATED, Mode, Policy

LAW = settings(max_examples=70, deadline=None, database=None)
EVERYTHING = """
mode: audit
cluster: prod
fail: open
tools:
  argocd: {reconcilers: [a], impersonated: [b], field_managers: [c]}
  flux: {enabled: false}
people: [p]
exempt: ["group:ops"]
tolerated: [.spec.replicas]
break_glass:
  reason_pattern: 'INC-\\d+ .+'
  reason_hint: a ticket
  window: 30m
  longest_window: 1h30m
  excluded_kinds: [Secret]
  key_file: /k
tracker: {kind: none}
server: {host: 127.0.0.1, port: 9443, workers: 2, body_timeout: 3s, certificates: ~/c}
state_directory: /s
controller_identity: me
kubeconfig: /kube
cluster_timeout: 1s
"""


@pytest.mark.parametrize("text", ["", "\n", "# nothing\n", "{}", "---\n"])
def test_without_settings_all_are_defaults(text):
    """An empty file is a configuration."""
    assert parse(text) == Config()


def test_the_defaults_are_the_policy_s():
    """What a configuration does not say, the rules decide alike without one."""
    policy = policy_of(Config())

    assert policy == Policy(people=frozenset(Config().people))


def test_everything_is_read():
    """Durations, paths, lists and choices."""
    config = parse(EVERYTHING)

    assert (config.mode, config.fail, config.tracker.kind) == (Mode.AUDIT, FailMode.OPEN, TrackerKind.NONE)
    assert config.break_glass.longest_window == timedelta(hours=1, minutes=30)
    assert config.server.certificates == Path.home() / "c"
    assert (config.outbox, config.ledger, config.issues) == (
        Path("/s/outbox"),
        Path("/s/ledger.sqlite"),
        Path("/s/issues.git"),
    )
    policy = policy_of(config)
    assert [tool.key for tool in policy.tools] == ["argocd", "push"]
    assert Identity(name="a") in policy.tools[0].reconcilers
    assert Identity(name="b", impersonated=True) in policy.tools[0].reconcilers
    assert policy.tools[0].field_managers == {"argocd-controller", "c"}
    assert policy.exempt == (Identity(name="group:ops"),)
    assert policy.tolerated == (*TOLERATED, ".spec.replicas")
    assert policy.break_glass.excluded_kinds == {"Secret"}
    assert policy.controller == "me"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("mod: audit", 'there is no setting "mod"; did you mean "mode"?'),
        ("break_glass: {windw: 1h}", 'did you mean "break_glass.window"?'),
        ("tools: {argo: {}}", 'did you mean "tools.argocd"?'),
        ("xyzzy: 1", "known here: break_glass, cluster,"),
        ("1: 2", 'there is no setting "1"'),
        ("mode: sometimes", "mode"),
        ("fail: 1", "fail"),
        ("cluster: [a]", "cluster"),
        ("cluster: 2024-01-01", "cluster"),
        ("people: alice", "people"),
        ("people: [1]", "people"),
        ("state_directory: 7", "state_directory"),
        ("server: {port: many}", "port"),
        ("server: [1]", "server must be a map of settings"),
        ("break_glass:", "break_glass must be a map of settings"),
        ("[1, 2]", "the file must be a map of settings"),
        ("text", "the file must be a map of settings"),
        ("cluster_timeout: 2", "cluster_timeout: '2' is no duration such as 90s, 30m or 1h30m"),
        ("cluster_timeout: 1:30", "cluster_timeout: '90' is no duration"),
        ("cluster_timeout: 0s", "must be longer than 0s"),
        ("break_glass: {window: 9h}", "break_glass.window is longer than break_glass.longest_window"),
        ("break_glass: {window: 0s}", "must be longer than 0s"),
        ("break_glass: {reason_pattern: '('}", "break_glass.reason_pattern is no regular expression"),
        ("mode: audit\nmode: enforce", "line 2: the key 'mode' stands here twice"),
        ("people: &a [x]\nexempt: *a", "aliases (*name) are not allowed here"),
        ("a: [b", "configuration: "),
        ("\x00", "configuration: "),
        ("--- {}\n--- {}\n", "configuration: "),
        ("? [a, b]\n: c", "configuration: "),
        ("? {a: b}\n: c", "configuration: "),
        ("cluster: 2024-13-45", "configuration: "),
        ("cluster: !!int x", "configuration: "),
        ("cluster: !!python/object:os.system x", "configuration: "),
        ("cluster: " + "[" * 1500, "configuration: "),
        ("server: {port: 70000}", "port"),
        ("server: {port: -1}", "port"),
        ("server: {workers: 0}", "workers"),
        ("server: {max_connections: 0}", "max_connections"),
        ("server: {body_timeout: 0s}", "body_timeout"),
        ("tolerated: [spec.replicas]", "tolerated"),
        ("exempt: ['']", "exempt"),
        ("exempt: ['group:']", "exempt"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(text, says):
    """One sentence, naming the file and the setting."""
    with pytest.raises(ConfigError) as raised:
        parse(text)

    assert says in str(raised.value)
    assert str(raised.value).startswith("configuration: ")


@LAW
@given(st.text(alphabet="ab:-[]{}&*!?<>|'\"#%@`\n ,0123456789=.~", max_size=30))
def test_any_text_is_a_configuration_or_refused(text):
    """Nothing but ConfigError is raised."""
    try:
        assert isinstance(parse(text), Config)
    except ConfigError as error:
        assert str(error)  # noqa: PT017 -- either is right


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=5), st.dates()),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(st.text(max_size=4), inner, max_size=2)),
    max_leaves=4,
)
NAMES = ["mode", "tools", "people", "exempt", "break_glass", "tracker", "server", "state_directory", "cluster_timeout"]
INNER = ["window", "reason_pattern", "key_file", "kind", "port", "host", "argocd", "enabled", "excluded_kinds"]


@LAW
@given(st.dictionaries(st.sampled_from(NAMES), st.one_of(VALUES, st.dictionaries(st.sampled_from(INNER), VALUES))))
def test_any_value_is_taken_or_refused(values):
    """Known keys with whatever may stand behind them."""
    try:
        assert isinstance(parse(yaml.safe_dump(values)), Config)
    except ConfigError as error:
        assert str(error)  # noqa: PT017 -- either is right


def test_a_file_is_read(tmp_path, monkeypatch):
    """The one that is named, else the one of the environment, else all defaults."""
    named, from_environment = tmp_path / "a.yaml", tmp_path / "b.yaml"
    named.write_text("cluster: a")
    from_environment.write_text("cluster: b")
    monkeypatch.delenv("DRIFTGATE_CONFIG", raising=False)
    assert load() == Config()
    monkeypatch.setenv("DRIFTGATE_CONFIG", str(from_environment))

    assert load().cluster == "b"
    assert load(named).cluster == "a"


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"])
def test_a_file_that_cannot_be_read_is_named(tmp_path, content):
    """Missing, or no text."""
    file = tmp_path / "config.yaml"
    if content is not None:
        file.write_bytes(content)

    with pytest.raises(ConfigError, match=r"config\.yaml can't be read"):
        load(file)


def test_a_folder_is_no_file(tmp_path):
    """It is refused like any other file that can't be read."""
    with pytest.raises(ConfigError, match="can't be read"):
        load(tmp_path)


def test_a_seal_key_is_long_enough(tmp_path):
    """32 bytes; the error says how one is made."""
    key = tmp_path / "key"
    key.write_bytes(b"k" * 32)
    assert read_seal_key(key) == b"k" * 32
    key.write_bytes(b"k" * 31)

    with pytest.raises(ConfigError, match="shorter than 32 bytes; make one: driftgate certs --seal-key"):
        read_seal_key(key)
    with pytest.raises(ConfigError, match="can't be read"):
        read_seal_key(tmp_path / "none")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("30m", 1800), ("1h", 3600), ("1h30m", 5400), (" 1h ", 3600), ("0s", 0), ("2h0m5s", 7205)],
)
def test_a_duration_is_read(text, seconds):
    """As people write it."""
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "h", "1", "1d", "-1s", "1s1h", "1.5h", "1h 30m", "9999999s", "1H", "soon"])
def test_what_is_no_duration_is_refused(text):
    """With the forms that are known."""
    with pytest.raises(ValueError, match="is no duration such as 90s, 30m or 1h30m"):
        parse_duration(text)


@LAW
@given(st.integers(0, 10**9))
def test_a_duration_survives_a_round_trip(seconds):
    """Printed and read it is the same."""
    duration = timedelta(seconds=seconds)

    assert parse_duration(print_duration(duration)) == duration

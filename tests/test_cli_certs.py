"""`driftgate certs`: makes what is missing, keeps what is good, and says which."""

import base64
from datetime import UTC, datetime, timedelta

import pytest
import yaml
from click.testing import CliRunner

from webhook.certs import check_pair, make_ca, make_serving_pair, write_pair
from webhook.cli.certs import certs

SERVICE = "driftgate.driftgate.svc"


def run(*arguments, code=0):
    """Return what the command prints on standard output and error."""
    result = CliRunner().invoke(certs, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result.stdout, result.stderr


def checked(folder, *names):
    """Return what the pair in a folder is good for."""
    return check_pair(folder, names, now=datetime.now(UTC))


def contents(folder):
    """Return all files of a folder."""
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "certificates"


def test_everything_is_made_at_once(folder, tmp_path):
    """CA, pair and seal key; each is told."""
    printed, _ = run(
        *("--directory", folder, "--name", SERVICE, "--name", "localhost", "--days", 30, "--ca-days", 60),
        *("--seal-key", tmp_path / "seal.key"),
    )

    made = checked(folder, SERVICE, "localhost")
    assert timedelta(days=29) < made.not_after - datetime.now(UTC) < timedelta(days=31)
    assert len((tmp_path / "seal.key").read_bytes()) == 32
    assert f"{tmp_path}/seal.key: made" in printed
    assert f"{folder}: made a CA and a serving certificate, valid for {SERVICE}, localhost until" in printed
    assert "driftgate manifests --ca ca.crt" in printed


def test_a_valid_pair_is_kept(folder, tmp_path):
    """A script may call it every time."""
    run("--directory", folder, "--seal-key", tmp_path / "seal.key")
    before = contents(folder), (tmp_path / "seal.key").read_bytes()

    printed, _ = run("--directory", folder, "--seal-key", tmp_path / "seal.key")

    assert (contents(folder), (tmp_path / "seal.key").read_bytes()) == before
    assert (
        f"{folder}: valid for {SERVICE}; nothing to do until {checked(folder).not_after:%Y-%m-%d %H:%M} UTC" in printed
    )
    assert "seal.key: there already, kept as it is" in printed


def test_renewing_keeps_the_ca_and_the_names(folder):
    """So that no caBundle has to change."""
    run("--directory", folder, "--name", "a.example", "--name", "127.0.0.1")
    before = contents(folder)

    printed, _ = run("--directory", folder, "--renew", "--days", 7)

    after = contents(folder)
    assert {name for name in after if after[name] != before[name]} == {"tls.crt", "tls.key"}
    assert checked(folder).names == ("a.example", "127.0.0.1")
    assert "signed by the CA that is there" in printed


def test_a_name_that_is_missing_is_for_a_person(folder):
    """A valid pair is not replaced by one for other names, unless that is asked for."""
    run("--directory", folder)
    before = contents(folder)

    _, said = run("--directory", folder, "--name", "a.example", code=1)
    assert f"not valid for a.example, only for {SERVICE}" in said
    assert f"--renew --name {SERVICE} --name a.example" in said
    assert contents(folder) == before

    run("--directory", folder, "--name", "a.example", "--renew")
    assert checked(folder).names == ("a.example",)


def test_an_expired_pair_is_replaced(folder):
    """With its own names, by its own CA, and the reason is told."""
    now = datetime.now(UTC)
    ca = make_ca("driftgate CA", 100, now=now - timedelta(days=50))
    write_pair(folder, make_serving_pair(ca, ["a.example"], 10, now=now - timedelta(days=50)), ca)

    printed, _ = run("--directory", folder)

    assert "tls.crt expired at" in printed
    assert checked(folder).names == ("a.example",)
    assert "the CA ends then" in printed


def test_an_expired_ca_is_for_a_person(folder):
    """A new one has to be published first."""
    now = datetime.now(UTC)
    ca = make_ca("driftgate CA", 10, now=now - timedelta(days=50))
    write_pair(folder, make_serving_pair(ca, ["a.example"], 10, now=now - timedelta(days=50)), ca)

    _, said = run("--directory", folder, "--renew", code=1)

    assert "the CA expired on" in said
    assert "put that into the caBundle" in said


def test_a_pair_from_elsewhere_is_not_replaced(folder):
    """Only --renew does, and never without the key of a CA that is there."""
    now = datetime.now(UTC)
    ca = make_ca("company", 100, now=now)
    write_pair(folder, make_serving_pair(ca, [SERVICE], 10, now=now))
    before = contents(folder)

    assert "that no CA there can renew: --renew replaces it" in run("--directory", folder, code=1)[1]
    (folder / "ca.crt").write_bytes(ca.certificate)
    assert "nothing to do" in run("--directory", folder)[0]
    assert "without ca.key, so nothing can be signed" in run("--directory", folder, "--renew", code=1)[1]
    (folder / "ca.crt").unlink()
    assert contents(folder) == before

    run("--directory", folder, "--renew")
    assert checked(folder).names == (SERVICE,)


def test_the_secret_is_all_that_goes_to_standard_output(folder, tmp_path):
    """For `kubectl apply -f -`: the pair and the CA's certificate, never its key."""
    printed, said = run("--directory", folder, "--secret", "--seal-key", tmp_path / "k", "--secret-namespace", "gate")

    secret = yaml.safe_load(printed)
    data = {name: base64.b64decode(content) for name, content in secret.pop("data").items()}
    assert secret == {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "driftgate-certificates", "namespace": "gate"},
        "type": "kubernetes.io/tls",
    }
    assert data == {name: content for name, content in contents(folder).items() if name != "ca.key"}
    assert "made a CA" in said
    assert "k: made" in said


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "say where: --directory"),
        (["--seal-key", "k", "--secret"], "say where: --directory"),
        (["--directory", "d", "--days", "0"], "--days"),
        (["--directory", "d", "--secret", "--secret-name", "a: b"], "is no name that Kubernetes takes"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path, monkeypatch, arguments, says):
    """Before anything is made."""
    monkeypatch.chdir(tmp_path)

    assert says in run(*arguments, code=2)[1]
    assert list(tmp_path.iterdir()) == []


def test_what_goes_wrong_is_a_sentence(tmp_path):
    """Exit code 1."""
    (tmp_path / "file").write_text("")

    assert "name another folder" in run("--directory", tmp_path / "file" / "x", code=1)[1]
    assert "is neither a DNS name" in run("--directory", tmp_path / "x", "--name", "a b", code=1)[1]
    assert not (tmp_path / "x").exists()

"""The command: every subcommand is listed and helps, and what goes wrong is one sentence."""

import subprocess
import sys

import pytest
from click.testing import CliRunner

from webhook import __version__
from webhook.cli import SUBCOMMANDS, driftgate


def run(*arguments):
    return CliRunner().invoke(driftgate, list(arguments))


def run_for_real(*arguments, **environment):
    """Run the command as a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "webhook", *arguments],
        capture_output=True,
        text=True,
        timeout=20,
        env=environment or None,
        check=False,
    )


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_the_help_lists_every_subcommand(flag):
    """With what it is for."""
    done = run(flag)

    assert done.exit_code == 0
    for name, text in SUBCOMMANDS.items():
        assert any(line.split()[:1] == [name] for line in done.output.splitlines()), name
        assert text.split()[0] in done.output


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_each_subcommand_helps(name):
    """Its module can be imported, and says how it is called."""
    done = run(name, "--help")

    assert done.exit_code == 0, done.output
    assert done.output.startswith(f"Usage: driftgate {name} ")
    assert len(done.output.splitlines()) > 4


@pytest.mark.parametrize("name", ["explain", "audit"])
def test_helping_needs_nothing_heavy(name):
    """No subcommand loads another's packages to say how it is called."""
    code = (
        f"import sys; from webhook.cli import driftgate; driftgate(['{name}', '--help'], standalone_mode=False);"
        "print('LOADED', *sorted({'kubernetes', 'flask', 'gunicorn', 'uvicorn', 'git'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=True)

    assert done.stdout.splitlines()[-1] == "LOADED"


def test_the_version_is_the_package_s():
    """With the name of the command."""
    assert run("--version").output == f"driftgate, version {__version__}\n"


def test_an_unknown_subcommand_is_refused():
    """With exit code 2, as wrong usage is."""
    done = run("explode")

    assert done.exit_code == 2
    assert "No such command 'explode'" in done.output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["webhook", "--config", "CONFIG"], 'did you mean "mode"?'),
        (["controller", "--config", "CONFIG"], 'did you mean "mode"?'),
        (["serve", "--config", "CONFIG"], 'did you mean "mode"?'),
        (["manifests", "--config", "CONFIG"], 'did you mean "mode"?'),
        (["explain", "--config", "CONFIG", "x"], 'did you mean "mode"?'),
        (["manifests", "--config", "none.yaml"], "none.yaml can't be read"),
    ],
)
def test_an_error_is_one_sentence(tmp_path, monkeypatch, arguments, says):
    """Without a stack trace, and with an exit code."""
    config = tmp_path / "config.yaml"
    config.write_text("mod: audit")
    monkeypatch.chdir(tmp_path)
    code = f"import sys; sys.argv = {['driftgate', *arguments]!r}; from webhook.cli import main; main()".replace(
        "CONFIG", str(config)
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=False)

    assert done.returncode == 1
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_missing_key_is_one_sentence(tmp_path):
    """The webhook says how one is made."""
    config = tmp_path / "config.yaml"
    config.write_text(f"break_glass: {{key_file: {tmp_path}/none}}\nstate_directory: {tmp_path}/state\n")

    done = run_for_real("controller", "--config", str(config))

    assert done.returncode == 1
    assert "driftgate certs --seal-key" in done.stderr
    assert "Traceback" not in done.stderr


class TestManifests:
    """`driftgate manifests` prints the registration."""

    def certificate(self, tmp_path):
        file = tmp_path / "ca.crt"
        file.write_text("-----BEGIN CERTIFICATE-----\n")
        return file

    def test_it_prints_yaml(self, tmp_path):
        """Two documents, for kubectl."""
        import yaml

        done = run("manifests", "--ca", str(self.certificate(tmp_path)), "--service", "gate/web:8443")

        found = list(yaml.safe_load_all(done.output))
        assert [one["kind"] for one in found] == ["MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"]
        service = found[0]["webhooks"][0]["clientConfig"]["service"]
        assert service == {"namespace": "gate", "name": "web", "path": "/mutate", "port": 8443}

    def test_the_port_may_be_left_out(self, tmp_path):
        """443 is what a Service has."""
        done = run("manifests", "--ca", str(self.certificate(tmp_path)), "--service", "gate/web")

        assert "port: 443" in done.output

    @pytest.mark.parametrize(
        "service", ["web", "/web", "gate/", "gate/web:x", "gate/web:-1", "gate/web:0", "a/b:70000"]
    )
    def test_a_service_that_is_none_is_refused(self, tmp_path, service):
        """With the two forms that are known."""
        done = run("manifests", "--ca", str(self.certificate(tmp_path)), "--service", service)

        assert done.exit_code == 2
        assert "NAMESPACE/NAME" in done.output

    def test_a_missing_certificate_is_named(self, tmp_path):
        """And the option by which another one is named."""
        config = tmp_path / "config.yaml"
        config.write_text(f"server: {{certificates: {tmp_path}/none}}")

        done = run("manifests", "--config", str(config))

        assert done.exit_code == 1
        assert "ca.crt can't be read" in done.output
        assert "--ca" in done.output

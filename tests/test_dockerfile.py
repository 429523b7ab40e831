"""The image's recipe against what it restates: the package, the lock files, the manifests, the configuration."""

import fnmatch
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.specifiers import SpecifierSet

from webhook import __version__
from webhook.cli import SUBCOMMANDS
from webhook.config import Config

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "Dockerfile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LINES = [
    (found[1], found[2])
    for line in TEXT.replace("\\\n", " ").splitlines()
    if (found := re.match(r"([A-Z]+) +(.+)", line))
]


def values(instruction):
    return [value for name, value in LINES if name == instruction]


def copied():
    """What is copied from the sources, not from another stage."""
    return [name for line in values("COPY") if not line.startswith("--from") for name in line.split()[:-1]]


def user():
    return values("USER")[-1]


def test_its_python_is_one_that_the_package_allows():
    """The tag names a release of Python that requires-python and the linter's target include."""
    [argument] = values("ARG")
    [version] = re.findall(r"^PYTHON=python:(3\.\d+)-slim-[a-z]+$", argument)

    assert SpecifierSet(PROJECT["project"]["requires-python"]).contains(f"{version}.0")
    assert {line.split()[0] for line in values("FROM")} == {"${PYTHON}"}


@pytest.mark.parametrize("name", copied())
def test_what_it_copies_is_there_and_not_ignored(name):
    """`.dockerignore` leaves everything out that it does not name."""
    ignored = (ROOT / ".dockerignore").read_text().splitlines()

    assert (ROOT / name).exists()
    assert "*" in ignored
    assert f"!{name.removeprefix('./')}" in ignored


def test_nothing_else_gets_into_the_build():
    """What is named in `.dockerignore` is copied, so a key or a clone that lies about stays out."""
    named = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]

    assert sorted(named) == sorted(name.removeprefix("./") for name in copied())
    assert not any(fnmatch.fnmatch(".venv", name) for name in named)


def test_everything_that_is_installed_has_its_hash_checked():
    """What is not ours comes from a lock file with hashes, which pins each version."""
    installed = re.findall(r"pip (?:--python \S+ )?install (.+)", TEXT)

    assert len(installed) == 3
    for arguments in installed:
        assert "--require-hashes" in arguments or "--no-index" in arguments
    for lock in ("requirements.txt", "requirements-dev.txt"):
        pinned = re.findall(r"^([a-z0-9._-]+)==\S+.*\\\n +--hash=sha256:", (ROOT / lock).read_text(), re.MULTILINE)
        assert "gitpython" in pinned


def test_what_builds_the_wheel_is_locked():
    """Without build isolation the backend comes from the development lock file."""
    backend = PROJECT["build-system"]["build-backend"].partition(".")[0]

    assert "--no-build-isolation" in TEXT
    assert re.search(rf"^{backend}==", (ROOT / "requirements-dev.txt").read_text(), re.MULTILINE)


def test_it_runs_as_the_user_of_the_manifests():
    """A volume that the pod may write belongs to the user that the image runs as, whom the image knows."""
    [pod] = [
        manifest["spec"]["template"]["spec"]
        for file in (ROOT / "manifests" / "base").glob("*.yaml")
        for manifest in yaml.safe_load_all(file.read_text())
        if manifest["kind"] == "StatefulSet"
    ]
    context = pod["securityContext"]

    assert user() == f"{context['runAsUser']}:{context['runAsGroup']}"
    assert set(re.findall(r"--(?:uid|gid|owner|group)[= ](\d+)", TEXT)) == {str(context["runAsUser"])}


def test_it_listens_and_keeps_things_where_the_configuration_says():
    """Port and state directory are the configuration's defaults."""
    assert values("EXPOSE") == [str(Config().server.port)]
    assert f" {Config().state_directory}" in TEXT


def test_it_starts_the_command():
    """The entry point is installed by the package, and its default is a subcommand."""
    [entry], [command] = values("ENTRYPOINT"), values("CMD")

    assert yaml.safe_load(entry) == list(PROJECT["project"]["scripts"])
    assert yaml.safe_load(command)[0] in SUBCOMMANDS


def test_the_final_stage_has_git_and_no_build_tools():
    """GitPython calls git; compilers and what installs packages stay behind."""
    last = TEXT[TEXT.rindex("\nFROM ") :]
    [packages] = re.findall(r"apt-get install ([^&]*)", last)

    assert {"git", "ca-certificates"} <= set(packages.split())
    assert "pip" not in last
    assert "gcc" not in last


def test_the_version_in_its_first_line_is_ours():
    """Who copies the command from the file gets the tag that the manifests name."""
    assert re.findall(r"-t driftgate:(\S+)", TEXT) == [__version__]

"""The demo's folder, in which its commands are typed: the sample Git repository, the commands' PATH, who is who.

    deploy/             the sample Git repository: manifests on `main`, driftgate's issues on `driftgate/issues`
    argocd/             what Argo CD applies: a manifest from there, with its mark
    NAME.kubeconfig     who somebody is
    bin/                driftgate, and the control plane's kubectl
    driftgate/          configuration, certificates, seal key, outbox and ledger of `driftgate serve`
    control-plane/      state and logs of the control plane

A command is run by a shell, here, exactly as it is printed. Nothing is read from the user's own home, and nothing is
written there.
"""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import yaml

from webhook.demo.sample import Manifest
from webhook.demo.terminal import Terminal, Unexpected
from webhook.ledger import LedgerReader, Row

_PATIENCE = 60  # seconds
_AUTHOR = {
    f"GIT_{role}_{part}": value
    for role in ("AUTHOR", "COMMITTER")
    for part, value in (("NAME", "Shop team"), ("EMAIL", "shop@example.com"))
}


class Folder:
    """The folder at `path`, which is there."""

    def __init__(self, path: Path, terminal: Terminal) -> None:
        self.path = path
        self.repository = path / "deploy"
        self.driftgate = path / "driftgate"
        self._terminal = terminal
        for name in ("bin", "home"):
            (path / name).mkdir()
        driftgate = path / "bin" / "driftgate"
        driftgate.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m webhook "$@"\n', encoding="utf-8")
        driftgate.chmod(0o755)

    def add_kubectl(self, kubectl: Path) -> None:
        """Have this kubectl used."""
        (self.path / "bin" / "kubectl").symlink_to(kubectl.absolute())

    def add_person(self, name: str, kubeconfig: Path) -> None:
        """Keep a person's kubeconfig, readable for its owner only, as it is."""
        shutil.copy(kubeconfig, self.path / f"{name}.kubeconfig")

    def commit(self, manifests: Mapping[str, Manifest]) -> None:
        """Make the sample repository, with these manifests by path."""
        for name, manifest in manifests.items():
            self.write(f"deploy/{name}", manifest)
        for command in ("init --quiet --initial-branch=main", "add .", 'commit --quiet --message="Deploy checkout"'):
            done = self._run(f"git -C deploy {command}", _AUTHOR)
            if done.returncode:
                raise Unexpected(f"git {command}: {done.stdout}")

    def write(self, name: str, manifest: Manifest) -> None:
        """Write a manifest as YAML."""
        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(yaml.safe_dump(manifest, sort_keys=False), encoding="utf-8")

    def type(self, command: str, *, who: str = "", refused: bool = False) -> None:
        """Run a command as somebody and show both it and what it prints. Raises Unexpected if it turns out otherwise.

        `refused`: it has to fail. A table goes to the terminal as it comes, since its program fits it in.
        """
        self._terminal.command(command)
        environment = {"KUBECONFIG": str(self.path / f"{who}.kubeconfig")} if who else {}
        if self._terminal.is_tty and command.startswith("driftgate"):
            sys.stdout.flush()
            done = self._run(command, environment, captured=False)
        else:
            done = self._run(command, environment)
            self._terminal.output(done.stdout)
        if (done.returncode != 0) is not refused:
            raise Unexpected(f"this should have been {'refused' if refused else 'done'}: {command}")

    def issue(self) -> str | None:
        """Return the first issue in the repository, as `git show` takes it; None if none was filed yet."""
        from webhook.issues.local.repository import BRANCH  # where there is no git this import fails

        done = self._run(f"git -C deploy ls-tree --name-only {BRANCH} issues/")
        return f"{BRANCH}:{done.stdout.split()[0]}" if done.returncode == 0 and done.stdout else None

    def records(self) -> list[Row]:
        """Return what the ledger holds, the newest first."""
        with LedgerReader(self.driftgate / "state" / "ledger.sqlite") as ledger:
            return ledger.list()

    def show_issue(self) -> None:
        """Show the issue as soon as it is filed."""
        self._terminal.step(
            "So that the change gets into Git, driftgate files an issue: here in the sample repository."
        )
        self._terminal.wait("driftgate files the issue", lambda: self.issue() is not None)
        self.type(f"git -C deploy show {self.issue()}")

    def show_records(self) -> None:
        """Show the audit log: all of it, the change, whether it is whole."""
        self._terminal.step("The audit log has it all, each record chained to the one before it by a hash.")
        self._terminal.wait(
            "the last record reaches the ledger", lambda: any(row.record.reason == "Held" for row in self.records())
        )
        change = next(row.record for row in self.records() if row.record.sub_resource == "scale" and row.record.window)
        self.type("driftgate audit list")
        self._terminal.say()
        self.type(f"driftgate audit show {change.id}")
        self._terminal.say()
        self.type("driftgate audit verify")

    def exports(self, who: str = "") -> list[str]:
        """Return what to type to go on by oneself."""
        here = shlex.quote(str(self.path))
        return [
            f"cd {here}",
            *([f"export KUBECONFIG={here}/{who}.kubeconfig"] if who else []),
            f"export DRIFTGATE_CONFIG={here}/driftgate/config.yaml",
            f"export PATH={here}/bin:$PATH",
        ]

    def _run(
        self, command: str, environment: Mapping[str, str] | None = None, *, captured: bool = True
    ) -> subprocess.CompletedProcess[str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        own = {
            "HOME": str(self.path / "home"),
            "TMPDIR": str(self.path),
            "PATH": f"{self.path / 'bin'}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            "DRIFTGATE_CONFIG": str(self.driftgate / "config.yaml"),
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_PAGER": "cat",
        }
        try:
            return subprocess.run(
                ["/bin/sh", "-c", command],
                cwd=self.path,
                env={**inherited, **own, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if captured else None,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=_PATIENCE,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise Unexpected(f"this did not end within {_PATIENCE} s: {command}") from None

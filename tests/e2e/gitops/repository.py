"""A real Git repository in a folder, and a small HTTP server that hands out what a Flux source-controller would."""

import hashlib
import os
import subprocess
import threading
from collections.abc import Mapping, Sequence
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

Manifest = dict[str, Any]
File = Manifest | Sequence[Manifest] | str | None

BRANCH = "main"
ISOLATED = {
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_TERMINAL_PROMPT": "0",
    **{f"GIT_{role}_NAME": "Ada" for role in ("AUTHOR", "COMMITTER")},
    **{f"GIT_{role}_EMAIL": "ada@example.org" for role in ("AUTHOR", "COMMITTER")},
}


class Repository:
    """A repository with one branch. It has a first commit from the start."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory.absolute()
        self.directory.mkdir(parents=True)
        self._git("init", "--quiet", f"--initial-branch={BRANCH}")
        self.commit({"README.md": "What runs in the cluster.\n"})

    @property
    def url(self) -> str:
        """Where a program on this machine clones it from."""
        return self.directory.as_uri()

    @property
    def head(self) -> str:
        """The hash of the newest commit."""
        return self._git("rev-parse", BRANCH).strip()

    def commit(self, changes: Mapping[str, File], message: str = "Change what runs") -> str:
        """Write these files and commit them; return the hash.

        A file is one manifest, several, or text; None deletes it.
        """
        for path, content in changes.items():
            file = self.directory / path
            if content is None:
                file.unlink()
                continue
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(_text(content), encoding="utf-8")
        self._git("add", "--all")
        self._git("commit", "--quiet", "--allow-empty", f"--message={message}")
        return self.head

    def archive(self, commit: str, to: Path) -> str:
        """Write what a commit holds as .tar.gz; return its digest, as in `sha256:...`."""
        self._git("archive", "--format=tar.gz", f"--output={to}", commit)
        return f"sha256:{hashlib.sha256(to.read_bytes()).hexdigest()}"

    def _git(self, *arguments: str) -> str:
        environment = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(self.directory), **ISOLATED}
        done = subprocess.run(
            ["git", *arguments], cwd=self.directory, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"git {' '.join(arguments)}: {done.stderr}"
        return done.stdout


def _text(content: Manifest | Sequence[Manifest] | str) -> str:
    if isinstance(content, str):
        return content
    documents = [content] if isinstance(content, dict) else content
    return yaml.safe_dump_all(documents, sort_keys=False)


class FileServer:
    """Hands out the files of a folder over HTTP on loopback. It ends with this process."""

    def __init__(self, directory: Path) -> None:
        handler = partial(_Silent, directory=str(directory))
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def url(self, name: str) -> str:
        """Where a file can be fetched."""
        host, port = self._server.server_address[:2]
        return f"http://{host!s}:{port}/{name}"

    def stop(self) -> None:
        """End it and wait until it is gone."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Silent(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- named so in the base class
        pass

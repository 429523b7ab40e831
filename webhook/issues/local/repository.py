"""The branch `driftgate/issues` of a Git repository, written by plumbing. What its files say is not known here.

Only objects and the one ref are ever written: no work tree, no index, no HEAD, no other branch, so a repository that
people work in does as well as a bare one, which is made where there is none. Whoever has this very branch checked out
sees it fall behind, as after a push.

A commit counts when the ref is moved to it, by compare-and-swap. A writer that dies before leaves unused objects; one
that dies within those milliseconds leaves git's lock of the ref, which is taken away when it is ten minutes old.

Git runs without the user's and the system's settings, without hooks, prompts and network, and no text that users
wrote is ever on a command line.
"""

import fcntl
import os
import re
import shlex
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

import git

from webhook.errors import TrackerError

BRANCH = "driftgate/issues"
REF = f"refs/heads/{BRANCH}"
FOLDER = "issues"
INDEX = "README.md"

_NUMBERED = re.compile(r"(\d+)-.*\.md")
_LOCKED = re.compile(rf"Unable to create '(.*/{REF}\.lock)': File exists")
_STALE_LOCK = 600.0  # seconds; git itself holds the lock of a ref for milliseconds
_TIMEOUT = 30.0  # seconds for one git command
_SETTINGS = (
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "core.attributesFile=/dev/null",
    "core.fsync=committed",
)
_NOT_INHERITED = (  # what would lead git elsewhere when we are started from a hook or an alias
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_COMMON_DIR",
    "GIT_CONFIG_COUNT",
    "GIT_CONFIG_PARAMETERS",
    "GIT_INDEX_FILE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_PREFIX",
    "GIT_QUARANTINE_PATH",
    "GIT_SHALLOW_FILE",
    "GIT_WORK_TREE",
)
_ENVIRONMENT = {
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_ATTR_NOSYSTEM": "1",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_ALLOW_PROTOCOL": "",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_NO_REPLACE_OBJECTS": "1",
}
_GIT = (
    "env",
    *(part for name in _NOT_INHERITED for part in ("-u", name)),
    "git",
    *(part for setting in _SETTINGS for part in ("-c", setting)),
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a tree, as git prints it."""

    mode: str
    kind: str
    oid: str


@dataclass(frozen=True, slots=True)
class Branch:
    """The branch at one moment: its commit (empty: none yet), its root, and its folder of issues, by name."""

    commit: str
    root: dict[str, Entry]
    issues: dict[str, Entry]

    @property
    def next_number(self) -> int:
        """The number that a new issue gets."""
        return 1 + max((int(found[1]) for name in self.issues if (found := _NUMBERED.fullmatch(name))), default=0)


class Repository:
    """The Git repository at `path`, bare or not, or still to be made. All methods raise TrackerError."""

    def __init__(self, path: Path, author: str) -> None:
        self.path = path
        name, _, address = author.rstrip("> ").partition("<")
        self._identity = {
            f"GIT_{role}_{part}": value.strip()
            for role in ("AUTHOR", "COMMITTER")
            for part, value in (("NAME", name), ("EMAIL", address))
        }

    def branch(self) -> Branch:
        """Return the branch as it stands."""
        with self._explained():
            if self._git_directory() is None:
                return Branch("", {}, {})
            commit = self._tip()
            root = self._entries(commit) if commit else {}
            folder = root.get(FOLDER)
            return Branch(commit, root, self._entries(folder.oid) if folder else {})

    def files_with(self, branch: Branch, word: str) -> list[str]:
        """Return the names of the issues whose files hold `word` anywhere."""
        folder = branch.root.get(FOLDER)
        if folder is None:
            return []
        options = ("--files-with-matches", "-z", "--fixed-strings", "--no-recurse-submodules")
        with self._explained():
            found = self._git("grep", *options, "-e", word, folder.oid, may_find_nothing=True)
        return [name.partition(":")[2] for name in found.decode().split("\0") if name]

    def read(self, oid: str) -> bytes:
        """Return the content of a file."""
        with self._explained():
            return self._git("cat-file", "blob", oid)

    def commit(self, branch: Branch, files: Mapping[str, bytes], message: str, now: datetime) -> bool:
        """Put `files` on top of `branch`, by path. False if the branch has moved: then nothing has happened."""
        with self._explained():
            if self._git_directory() is None:
                self._create()
            root, issues = dict(branch.root), dict(branch.issues)
            for path, content in files.items():
                folder, _, name = path.rpartition("/")
                (issues if folder else root)[name] = self._blob(content)
            tree = self._tree(root | {FOLDER: self._tree(issues)})
            return self._advance(branch.commit, self._commit_tree(tree, branch.commit, message, now))

    def command(self, path: str) -> str:
        """Return what to type to read a file of the branch."""
        return f"git -C {shlex.quote(str(self.path))} show {BRANCH}:{path}"

    def _advance(self, old: str, new: str) -> bool:
        try:
            self._git("update-ref", "-m", "driftgate", "--", REF, new, old, env=self._identity)
        except _GitFailed as failed:
            if self._tip() == old and not self._locked(str(failed)):
                raise
            return False
        return True

    def _locked(self, complaint: str) -> bool:
        """Return whether git found the ref locked. A lock whose owner was killed long ago is taken away."""
        found = _LOCKED.search(complaint)
        if not found:
            return False
        lock = Path(found[1])
        with _alone(self._git_directory() or self.path), suppress(FileNotFoundError):
            if time.time() - lock.stat().st_mtime > _STALE_LOCK:
                lock.unlink()
        return True

    def _tip(self) -> str:
        return self._git("for-each-ref", "--format=%(objectname)", "--", REF).decode().strip()

    def _entries(self, tree: str) -> dict[str, Entry]:
        listed = self._git("ls-tree", "-z", "--full-tree", tree).decode("utf-8", "surrogateescape")
        entries = (line.partition("\t") for line in listed.split("\0") if line)
        return {name: Entry(*fields.split(" ")) for fields, _, name in entries}

    def _blob(self, content: bytes) -> Entry:
        oid = self._git("hash-object", "-w", "--no-filters", "--stdin", stdin=content)
        return Entry("100644", "blob", oid.decode().strip())

    def _tree(self, entries: Mapping[str, Entry]) -> Entry:
        lines = "".join(f"{entry.mode} {entry.kind} {entry.oid}\t{name}\0" for name, entry in entries.items())
        oid = self._git("mktree", "-z", stdin=lines.encode("utf-8", "surrogateescape"))
        return Entry("040000", "tree", oid.decode().strip())

    def _commit_tree(self, tree: Entry, parent: str, message: str, now: datetime) -> str:
        date = f"@{int(now.timestamp())} +0000"
        env = self._identity | {"GIT_AUTHOR_DATE": date, "GIT_COMMITTER_DATE": date}
        parents = ("-p", parent) if parent else ()
        return self._git("commit-tree", *parents, tree.oid, stdin=message.encode(), env=env).decode().strip()

    def _git_directory(self) -> Path | None:
        """Return where git keeps its data, a file if it says so there; None if the repository is still to be made."""
        dot_git = self.path / ".git"
        if dot_git.exists():
            return dot_git
        if (self.path / "HEAD").exists():
            return self.path
        if self.path.exists() and any(self.path.iterdir()):
            raise _GitFailed("this folder holds other things, and no Git repository")
        return None

    def _create(self) -> None:
        """Make the repository beside its place and move it there, so that it is never there by half."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.path.parent, prefix=".driftgate-") as folder:
            made = Path(folder) / "issues.git"
            self._git("init", "--quiet", "--bare", "--template=", f"--initial-branch={BRANCH}", "--", str(made))
            try:
                made.rename(self.path)
            except OSError:
                if self._git_directory() is None:
                    raise  # otherwise somebody else has made it meanwhile

    def _git(
        self,
        *arguments: str,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
        may_find_nothing: bool = False,
    ) -> bytes:
        """Return what git prints. `may_find_nothing`: its status 1, without a complaint, is an empty answer."""
        command = [*_GIT, *arguments]
        place = self._git_directory()
        with _as_file(stdin) as stream:
            status, printed, complaint = git.Git(self.path if place else self.path.parent).execute(
                command,
                istream=stream,
                env=_ENVIRONMENT | {"GIT_DIR": str(place or self.path)} | dict(env or {}),
                with_extended_output=True,
                with_exceptions=False,
                stdout_as_string=False,
                strip_newline_in_stdout=False,
                kill_after_timeout=_TIMEOUT,
            )
        complained = re.search(r"^(error|fatal):", complaint, re.MULTILINE) is not None
        if status not in {0, 1 if may_find_nothing else 0} or (may_find_nothing and complained):
            raise _GitFailed(complaint or f"git {arguments[0]} ended with status {status}")
        return printed

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn what goes wrong into a TrackerError that says what to do."""
        try:
            yield
        except (_GitFailed, git.GitError, OSError) as error:
            said = " ".join(str(error).split())[:300]
            raise TrackerError(f"Issues can't be kept in {self.path}: {said}. {self._advice(said)}") from None

    def _advice(self, said: str) -> str:
        if re.search(r"permission|denied|read-only|no space|not a directory", said, re.IGNORECASE):
            return f"User {os.getuid()} must be able to write there; or name another place in tracker.repository."
        return (
            f"See what `git -C {shlex.quote(str(self.path))} fsck` says. What can't be mended, move away: a new one "
            "is made. Or name another place in tracker.repository."
        )


class _GitFailed(Exception):
    """Git said no; the text is its own."""


@contextmanager
def _as_file(content: bytes) -> Iterator[BinaryIO]:
    """Give `content` as an open file, which is what a process can have as its standard input."""
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.seek(0)
        yield file


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold the lock by which driftgate's own processes wait for each other; it goes when its holder dies."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)

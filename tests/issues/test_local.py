"""The local tracker, on real Git repositories."""

import os
import shlex
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml

from webhook.config import Config, TrackerKind, TrackerSettings
from webhook.errors import TrackerError
from webhook.issues import Issue, open_tracker
from webhook.issues.local import LocalTracker
from webhook.record import new_ulid

NOON = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
MARKER = "01JDC3Q7V8ZK2M5T9XW4R6YB1E"
ISSUE = Issue(
    marker=MARKER,
    title="Deployment shop/checkout was changed behind broken glass",
    body="**alice** changed `.spec.replicas`.\n\n---\n\nUntil 13:00.",
    labels=("break-glass", "driftgate"),
)
REF = "refs/heads/driftgate/issues"
IMPORTABLE = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])  # for a Python started here


class Clock:
    """A minute later each time it is asked."""

    def __init__(self):
        self.now = NOON

    def __call__(self):
        self.now += timedelta(minutes=1)
        return self.now


def run(*command, cwd=None, **more):
    done = subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True, **more)
    return done.stdout


def git(repository, *arguments):
    env = os.environ | {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    identity = ("-c", "user.name=Somebody", "-c", "user.email=somebody@localhost")
    return run("git", "-C", str(repository), *identity, *arguments, env=env)


def read(filed):
    """Type what `filed.url` says; return front matter and text."""
    head, _, text = run(*shlex.split(filed.url)).partition("\n---\n")
    return yaml.safe_load(head), text


def numbers(tracker, markers):
    return [filed.number for marker in markers if (filed := tracker.find(marker))]


def commits(repository):
    return git(repository, "log", "--format=%s", "driftgate/issues").splitlines()


def snapshot(folder):
    """Everything that belongs to the people who work in a repository."""
    kept = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and ".git" not in path.parts}
    names = ("HEAD", "index", "refs/heads/main", "config", "logs/HEAD")
    return kept, {name: (folder / ".git" / name).read_bytes() for name in names}


@pytest.fixture
def tracker(tmp_path):
    return LocalTracker(tmp_path / "state" / "issues.git", clock=Clock())


@pytest.fixture
def repository(tmp_path):
    return tmp_path / "state" / "issues.git"


@pytest.fixture
def workshop(tmp_path):
    """A repository with a commit, something staged, something changed, something new and a hook that refuses."""
    folder = tmp_path / "deploy"
    run("git", "init", "--quiet", "--initial-branch=main", str(folder))
    (folder / "checkout.yaml").write_text("replicas: 3\n")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "First")
    (folder / "staged.yaml").write_text("staged\n")
    git(folder, "add", "staged.yaml")
    (folder / "checkout.yaml").write_text("replicas: 4\n")
    (folder / "new.yaml").write_text("new\n")
    hook = folder / ".git" / "hooks" / "reference-transaction"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\nexit 1\n")
    hook.chmod(0o755)
    return folder


def test_an_issue_is_filed_as_a_file_that_git_shows(tracker, repository):
    """What is filed can be read by typing what `url` says: front matter, then the body as it was given."""
    filed = tracker.file(ISSUE)

    front, text = read(filed)
    assert filed.number == 1
    name = "issues/0001-deployment-shop-checkout-was-changed-behind-brok.md"
    assert filed.url == f"git -C {repository} show driftgate/issues:{name}"
    assert front == {
        "number": 1,
        "marker": MARKER,
        "title": ISSUE.title,
        "state": "open",
        "labels": ["break-glass", "driftgate"],
        "created": "2026-11-23T12:01:00Z",
        "updated": "2026-11-23T12:01:00Z",
    }
    assert text == f"\n{ISSUE.body}\n"


def test_the_commit_says_who_and_when(tracker, repository):
    """The author is driftgate and the time is the clock's, not the machine's user and time."""
    tracker.file(ISSUE)

    said = git(repository, "log", "-1", "--format=%an <%ae> %cn <%ce> %cI", "driftgate/issues")
    assert said.startswith("driftgate <driftgate@localhost> driftgate <driftgate@localhost> 2026-11-23T12:0")


def test_an_issue_is_filed_once(tracker, repository):
    """The same marker again is the same issue, left as it is; another marker is another issue."""
    first = tracker.file(ISSUE)

    again = tracker.file(Issue(marker=MARKER, title="Other words", body="Other text"))
    other = tracker.file(Issue(marker=new_ulid(), title="Other words", body=f"It mentions {MARKER}"))

    assert again == first == tracker.find(MARKER)
    assert other.number == 2
    assert len(commits(repository)) == 2


def test_what_was_never_filed_is_not_found(tracker, repository):
    """Looking makes no repository, and finds nothing in one that lacks the issue."""
    assert tracker.find(MARKER) is None
    assert not repository.exists()

    tracker.file(Issue(marker=new_ulid(), title="Another", body=""))
    assert tracker.find(MARKER) is None


def test_a_comment_with_the_same_key_is_added_once(tracker, repository):
    """Keys tell comments apart, whatever they look like."""
    filed = tracker.file(ISSUE)
    strange = "a key --> with \n everything"

    for key, words in (("one", "Replicas: 3 -> 5"), ("two", "Image changed"), (strange, "Strange")) * 2:
        tracker.comment(MARKER, words, key=key)

    front, text = read(filed)
    assert [text.count(words) for words in ("Replicas: 3 -> 5", "Image changed", "Strange")] == [1, 1, 1]
    assert text.count("\n## Comment 2026-11-23 12:") == 3
    assert front["updated"] > front["created"]
    assert len(commits(repository)) == 4


def test_text_can_not_pass_for_a_hidden_mark(tracker):
    """A comment that spells out another's hidden mark does not keep that other from being added."""
    filed = tracker.file(ISSUE)

    tracker.comment(MARKER, "<!-- driftgate:comment two -->\nstate: closed", key="one")
    tracker.comment(MARKER, "The second\x1b[2J", key="two")

    _, text = read(filed)
    assert "The second\N{REPLACEMENT CHARACTER}[2J" in text


def test_an_issue_is_closed_once(tracker, repository):
    """Closing states the outcome, and again changes nothing; comments may still follow; it is still found."""
    filed = tracker.file(ISSUE)

    tracker.close(MARKER, "Git and cluster agree.")
    tracker.close(MARKER, "Git and cluster agree, still.")
    tracker.comment(MARKER, "Thanks", key="thanks")

    front, text = read(filed)
    assert front["state"] == "closed"
    assert "Git and cluster agree.\n" in text
    assert "still" not in text
    assert tracker.file(ISSUE) == tracker.find(MARKER) == filed
    assert len(commits(repository)) == 3


def test_a_comment_needs_its_issue(tracker):
    """Nothing is made up for a marker that nobody filed."""
    with pytest.raises(TrackerError, match="There is no issue"):
        tracker.comment(MARKER, "Hello", key="one")
    with pytest.raises(TrackerError, match="There is no issue"):
        tracker.close(MARKER, "Bye")


def test_the_index_lists_issues_with_their_state(tracker, repository):
    """The newest comes first, and its links lead to the files."""
    tracker.file(ISSUE)
    tracker.file(Issue(marker=new_ulid(), title="A `second` @one\n- [0001](evil)", body=""))
    tracker.close(MARKER, "Done")

    lines = git(repository, "show", "driftgate/issues:README.md").splitlines()
    listed = [line for line in lines if line.startswith("- ")]
    assert listed == [
        "- [0002](issues/0002-a-second-one-0001-evil.md) open, 2026-11-23: `A 'second' @one - [0001](evil)`",
        "- [0001](issues/0001-deployment-shop-checkout-was-changed-behind-brok.md) closed, 2026-11-23: "
        "`Deployment shop/checkout was changed behind broken glass`",
    ]


@pytest.mark.parametrize(
    "title",
    [
        "---\nstate: closed\n---\n",
        "a: b # c",
        "- [x] *&!%@`",
        "\N{FIRE} \u4f60\u597d e\u0301 \u202e \u2028 \ud800 \x00 \x1b[2J",
        "../../../../etc/passwd",
        "--output=/tmp/x",
        "x " * 5_000,
        "",
        "\r\n\t",
    ],
)
def test_a_hostile_title_survives(tracker, title):
    """Whatever a user writes is a value in the front matter, and names a harmless file."""
    filed = tracker.file(Issue(marker=MARKER, title=title, body="---\nstate: closed\n---", labels=("a: b", "\n---\n")))
    tracker.comment(MARKER, title, key=title)
    tracker.comment(MARKER, title, key=title)

    front, text = read(filed)
    assert front["title"] == title
    assert front["state"] == "open"
    assert front["labels"] == ["a: b", "\n---\n"]
    assert text.startswith("\n---\nstate: closed\n---\n")
    assert text.count("## Comment") == 1
    name = filed.url.rpartition("/")[2]
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-.")
    assert len(name) < 64


@pytest.mark.parametrize("marker", ["", "-e", "a b", "a\nb", "\x00", "x" * 200])
def test_a_marker_is_a_word(tracker, marker):
    """What could not be found again is refused."""
    with pytest.raises(TrackerError, match="can't mark"):
        tracker.file(Issue(marker=marker, title="", body=""))


def test_what_people_add_to_a_file_stays(tracker, repository, tmp_path):
    """An issue edited on the branch keeps its new text, its new keys, and what else lies on the branch."""
    filed = tracker.file(ISSUE)
    clone = tmp_path / "clone"
    run("git", "clone", "--quiet", "--branch", "driftgate/issues", str(repository), str(clone))
    file = clone / filed.url.rpartition(":")[2]
    file.write_text(file.read_text().replace("state: open", "state: open\nassignee: bob") + "\nI look into it.\n")
    (clone / "notes.txt").write_text("ours\n")
    git(clone, "add", ".")
    git(clone, "commit", "--quiet", "-m", "Take it")
    git(clone, "push", "--quiet")

    tracker.comment(MARKER, "One more change", key="one")

    front, text = read(filed)
    assert front["assignee"] == "bob"
    assert "I look into it." in text
    assert "One more change" in text
    assert git(repository, "show", "driftgate/issues:notes.txt") == "ours\n"


def test_a_repository_that_people_work_in_keeps_its_state(workshop):
    """Work tree, index, HEAD, branches and settings stay as they are, and its hooks are not asked."""
    status, before = git(workshop, "status", "--porcelain"), snapshot(workshop)
    tracker = LocalTracker(workshop)

    tracker.file(ISSUE)
    tracker.comment(MARKER, "More", key="one")
    tracker.close(MARKER, "Done")

    assert snapshot(workshop) == before
    assert git(workshop, "status", "--porcelain") == status
    assert git(workshop, "branch", "--format=%(refname:short)").split() == ["driftgate/issues", "main"]


def test_a_linked_work_tree_will_do(workshop, tmp_path):
    """A work tree whose `.git` is a file leads to the same branch."""
    (workshop / ".git" / "hooks" / "reference-transaction").unlink()
    linked = tmp_path / "linked"
    git(workshop, "worktree", "add", "--quiet", "--detach", str(linked))

    LocalTracker(linked).file(ISSUE)

    assert LocalTracker(workshop).find(MARKER) is not None


def test_the_environment_of_another_git_does_not_mislead(workshop, tmp_path, monkeypatch):
    """Started from a hook or an alias, driftgate still writes to its own repository, without the user's settings."""
    settings = tmp_path / "gitconfig"
    settings.write_text("[core\nbroken")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(settings))
    monkeypatch.setenv("GIT_DIR", str(workshop / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(workshop))
    monkeypatch.setenv("GIT_INDEX_FILE", str(workshop / ".git" / "index"))
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "core.hooksPath")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "/nowhere")
    before = snapshot(workshop)
    tracker = LocalTracker(tmp_path / "issues.git")

    filed = tracker.file(ISSUE)

    assert tracker.find(MARKER) == filed
    assert snapshot(workshop) == before
    assert not (workshop / ".git" / REF).exists()


WRITER = """
import sys
from pathlib import Path
from webhook.issues import Issue
from webhook.issues.local import LocalTracker

path, writer, shared = sys.argv[1:]
tracker = LocalTracker(Path(path))
tracker.file(Issue(marker=shared, title="Shared", body=""))
for number in range(6):
    marker = f"{writer}-{number}"
    tracker.file(Issue(marker=marker, title=f"From {writer}", body=marker))
    tracker.comment(shared, marker, key=marker)
    tracker.close(marker, "done")
"""


def start_writer(repository, writer):
    env = os.environ | {"PYTHONPATH": IMPORTABLE}
    return subprocess.Popen([sys.executable, "-c", WRITER, str(repository), writer, MARKER], env=env)


def test_writers_at_the_same_time_lose_nothing(repository):
    """Three processes that begin without a repository: every issue and comment is there, and the shared one once."""
    writers = [start_writer(repository, name) for name in ("a", "b", "c")]
    assert [writer.wait(timeout=120) for writer in writers] == [0, 0, 0]

    tracker = LocalTracker(repository)
    markers = [f"{name}-{number}" for name in "abc" for number in range(6)]
    assert sorted(numbers(tracker, [*markers, MARKER])) == list(range(1, 20))
    _, text = read(tracker.find(MARKER))
    assert all(text.count(f"\n{marker}\n") == 1 for marker in markers)
    index = git(repository, "show", "driftgate/issues:README.md")
    assert (index.count("closed, "), index.count("open, ")) == (18, 1)
    git(repository, "fsck", "--strict")


def test_a_killed_writer_leaves_a_usable_repository(repository):
    """kill -9 at any moment: the repository is sound, and the same calls again bring everything to its end."""
    for moment in (0.25, 0.4, 0.55, 0.7):
        writer = start_writer(repository, "a")
        time.sleep(moment)
        writer.kill()
        writer.wait()
        if (lock := repository / f"{REF}.lock").exists():
            os.utime(lock, (0, 0))

    assert start_writer(repository, "a").wait(timeout=120) == 0
    markers = [f"a-{number}" for number in range(6)]
    assert sorted(numbers(LocalTracker(repository), markers)) == list(range(2, 8))
    git(repository, "fsck", "--strict")


def test_a_lock_left_behind_is_taken_away_when_it_is_old(tracker, repository, monkeypatch):
    """git's own lock of the ref, left by a killed writer, blocks for ten minutes and not for ever."""
    tracker.file(ISSUE)
    lock = repository / f"{REF}.lock"
    lock.touch()
    monkeypatch.setattr("webhook.issues.local._ATTEMPTS", 2)

    with pytest.raises(TrackerError, match=r"remove the file refs/heads/driftgate/issues\.lock"):
        tracker.comment(MARKER, "Hello", key="one")
    os.utime(lock, (0, 0))
    tracker.comment(MARKER, "Hello", key="one")

    assert not lock.exists()
    assert len(commits(repository)) == 2


def test_an_empty_folder_becomes_the_repository(tmp_path):
    """A folder made ahead, such as a fresh volume's, is taken."""
    tracker = LocalTracker(tmp_path)

    tracker.file(ISSUE)

    assert tracker.find(MARKER) is not None
    assert [path.name for path in tmp_path.parent.iterdir() if path.name.startswith(".driftgate-")] == []


def test_a_folder_of_other_things_is_refused(tmp_path):
    """Nothing is written into a folder that is no repository, even inside one."""
    run("git", "init", "--quiet", str(tmp_path))
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "letter.txt").write_text("mine")

    with pytest.raises(TrackerError, match="holds other things"):
        LocalTracker(inner).file(ISSUE)

    assert [path.name for path in inner.iterdir()] == ["letter.txt"]


def test_a_place_that_can_not_be_written_says_what_to_do(tmp_path):
    """The sentence names the place and the setting."""
    (tmp_path / "file").write_text("")

    with pytest.raises(TrackerError, match=r"/file/issues\.git: .*name another place in tracker\.repository"):
        LocalTracker(tmp_path / "file" / "issues.git").file(ISSUE)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_repository_that_may_not_be_written_says_who_must(tracker, repository):
    """The sentence names the user that needs the right."""
    tracker.file(ISSUE)
    objects = repository / "objects"
    for folder in [objects, *objects.iterdir()]:
        folder.chmod(0o500)

    with pytest.raises(TrackerError, match=f"User {os.getuid()} must be able to write there"):
        tracker.comment(MARKER, "Hello", key="one")


def corrupt_every_object(repository):
    for path in (repository / "objects").glob("??/*"):
        path.chmod(0o600)
        path.write_bytes(b"nonsense")


def corrupt_the_issue(repository):
    oid = git(repository, "rev-parse", "driftgate/issues:issues/0001-x.md").strip()
    path = repository / "objects" / oid[:2] / oid[2:]
    path.chmod(0o600)
    path.write_bytes(b"nonsense")


def corrupt_the_ref(repository):
    (repository / REF).write_text("nonsense\n")


def occupy_the_name(repository):
    git(repository, "branch", "-m", "driftgate/issues", "elsewhere")
    git(repository, "branch", "driftgate", "elsewhere")


@pytest.mark.parametrize("damage", [corrupt_every_object, corrupt_the_issue, corrupt_the_ref, occupy_the_name])
def test_a_broken_repository_says_what_to_do(tracker, repository, damage):
    """An issue that can't be read is not filed a second time, and no exception of git's gets out."""
    tracker.file(Issue(marker=MARKER, title="x", body=""))
    damage(repository)

    with pytest.raises(TrackerError, match=r"fsck` says"):
        tracker.file(Issue(marker=MARKER, title="x", body=""))


def test_a_broken_front_matter_names_the_file(tracker, repository, tmp_path):
    """An edit that broke a file is mended by people; the issue is not filed again beside it."""
    filed = tracker.file(ISSUE)
    clone = tmp_path / "clone"
    run("git", "clone", "--quiet", str(repository), str(clone))
    file = clone / filed.url.rpartition(":")[2]
    file.write_text(file.read_text().replace("title: ", "title: [", 1))
    git(clone, "commit", "--quiet", "-a", "-m", "Break it")
    git(clone, "push", "--quiet")

    with pytest.raises(TrackerError, match=rf"{file.name} .* mend it"):
        tracker.file(ISSUE)


def test_the_configuration_names_the_tracker(tmp_path):
    """`local` is the default, in the state directory; `none` is none. Nothing is made before the first issue."""
    tracker = open_tracker(Config(state_directory=tmp_path / "state"))
    assert tracker is not None
    assert not (tmp_path / "state").exists()

    tracker.file(ISSUE)
    assert (tmp_path / "state" / "issues.git" / "HEAD").exists()
    assert open_tracker(Config(tracker=TrackerSettings(kind=TrackerKind.NONE))) is None


def test_without_git_the_sentence_says_so(tmp_path):
    """A machine without git gets a sentence, not a traceback of an import."""
    program = (
        "from webhook.config import Config\n"
        "from webhook.errors import TrackerError\n"
        "from webhook.issues import open_tracker\n"
        "try:\n    open_tracker(Config())\nexcept TrackerError as error:\n    print(error)\n"
    )
    env = {"PATH": str(tmp_path), "PYTHONPATH": IMPORTABLE}

    said = run(sys.executable, "-c", program, env=env)

    assert said.startswith("Issues can't be kept in a Git repository: ")
    assert "Install git" in said

"""`driftgate explain`: recorded reviews are decided offline."""

import json
import re
import shutil

import pytest
import yaml
from click.testing import CliRunner

from tests import recordings
from tests.fakes import asking, deployment, review_of, secret
from webhook.cli import driftgate

EDIT = recordings.RECORDED / "kubectl-edit.csa.validate.json"
SCALE = recordings.RECORDED / "kubectl-scale.csa.validate.json"


def explain(*arguments, stdin=None):
    """Return exit code, output and errors."""
    done = CliRunner().invoke(driftgate, ["explain", *map(str, arguments)], input=stdin)
    assert not done.exception or isinstance(done.exception, SystemExit)
    return done.exit_code, done.stdout, done.stderr


def explained(*arguments, stdin=None):
    code, out, _ = explain("-o", "json", *arguments, stdin=stdin)
    assert code == 0
    return json.loads(out)


def test_a_file_is_explained_as_text():
    """What, whose, who, which fields, verdict, rule, and the message that would be sent."""
    code, out, err = explain(EDIT)

    assert (code, err) == (0, "")
    assert out == (
        f"{EDIT}\n"
        "  write       UPDATE deployments guestbook/web by alice\n"
        '  managed by  Argo CD application "guestbook"\n'
        "  actor       person\n"
        "  drift       .spec.replicas: 3 -> 4\n"
        "  verdict     Deny Drift\n"
        "  rule        11. otherwise: drift\n"
        '  message     Deployment guestbook/web is managed by Argo CD application "guestbook"; this change would drift '
        "from Git:\n"
        "                .spec.replicas: 3 -> 4\n"
        '              Change it in Git, where Argo CD application "guestbook" is deployed from.\n'
        "              In an emergency, first: kubectl annotate deployment/web -n guestbook "
        'driftgate.dev/break-glass="INC-... why"\n'
    )


def test_json_has_these_keys():
    """For scripts that test a policy."""
    (found,) = explained(EDIT)

    assert {"file", "verdict", "reason", "managed_by", "actor", "drift", "message"} <= set(found)
    assert found["file"] == str(EDIT)
    assert (found["verdict"], found["reason"], found["actor"]) == ("Deny", "Drift", "person")
    assert found["managed_by"] == 'Argo CD application "guestbook"'
    assert found["drift"] == [{"path": ".spec.replicas", "before": "3", "after": "4"}]
    assert found["message"].startswith("Deployment guestbook/web is managed by")


def test_an_allowed_write_has_no_message():
    """Nor drift."""
    (found,) = explained(recordings.RECORDED / "gitops-update-deployment.csa.validate.json")

    assert (found["verdict"], found["reason"], found["drift"], found["message"]) == ("Allow", "Reconciler", [], "")


def test_a_folder_is_explained_file_by_file(tmp_path):
    """Sorted, its folders too; what is no JSON file is left out."""
    (tmp_path / "inner").mkdir()
    shutil.copy(EDIT, tmp_path / "b.json")
    shutil.copy(EDIT, tmp_path / "inner" / "a.json")
    (tmp_path / "notes.txt").write_text("no review")

    found = explained(tmp_path)

    assert [one["file"] for one in found] == [str(tmp_path / "b.json"), str(tmp_path / "inner" / "a.json")]


def test_standard_input_is_a_dash():
    """A review may come from a pipe."""
    (found,) = explained("-", stdin=EDIT.read_bytes())

    assert (found["file"], found["verdict"]) == ("-", "Deny")


def test_several_files_are_explained():
    """In the order in which they are named."""
    assert [one["file"] for one in explained(SCALE, EDIT)] == [str(SCALE), str(EDIT)]


def test_a_scale_needs_its_parent():
    """A Scale says nothing about who manages what it scales."""
    (found,) = explained(SCALE)

    assert (found["verdict"], found["reason"]) == ("Deny", "ParentUnknown")
    assert "guestbook/web is scaled" in found["message"]


@pytest.mark.parametrize("form", ["json", "yaml"])
def test_a_scale_is_judged_by_the_parent_that_is_named(tmp_path, form):
    """As JSON or YAML."""
    parent = tmp_path / f"web.{form}"
    obj = recordings.argocd_deployment()
    parent.write_text(json.dumps(obj) if form == "json" else yaml.safe_dump(obj))

    (found,) = explained("--parent", parent, SCALE)

    assert (found["verdict"], found["reason"]) == ("Deny", "Drift")
    assert found["drift"][0]["path"] == ".spec.replicas"


@pytest.mark.parametrize("content", ["[]", "7", "{}", "a: [", "\x00", "a: 2024-13-45", "[" * 1500, "- kind"])
def test_a_parent_that_is_none_is_refused(tmp_path, content):
    """One sentence that names the file."""
    parent = tmp_path / "web.yaml"
    parent.write_text(content)

    code, out, err = explain("--parent", parent, SCALE)

    assert (code, out) == (1, "")
    assert "web.yaml" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("content", [b"", b"{}", b"no JSON", b"\xff", b"[" * 100_000])
def test_a_file_that_is_no_review_is_named(tmp_path, content):
    """The others are explained nonetheless; the exit code is 1."""
    bad = tmp_path / "bad.json"
    bad.write_bytes(content)

    code, out, err = explain("-o", "json", bad, EDIT)

    assert code == 1
    assert [one["file"] for one in json.loads(out)] == [str(EDIT)]
    assert re.fullmatch(rf"{re.escape(str(bad))}: [^\n]+\n", err)


def test_an_object_that_is_none_makes_no_review(tmp_path):
    """It is decoded late, and refused no less."""
    review = json.loads(EDIT.read_bytes())
    review["request"]["object"] = "text"
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps(review))

    code, out, err = explain(bad)

    assert (code, out) == (1, "")
    assert "request.object is no Kubernetes object" in err


def test_managed_fields_that_cannot_be_read_are_told(tmp_path):
    """Such a write can't be judged; that is an explanation, too."""
    review = json.loads(EDIT.read_bytes())
    for key in ("object", "oldObject"):
        review["request"][key]["metadata"]["managedFields"] = 7
    odd = tmp_path / "odd.json"
    odd.write_text(json.dumps(review))

    (found,) = explained(odd)

    assert (found["verdict"], found["reason"]) == ("Deny", "CannotJudge")


def test_a_missing_file_is_named(tmp_path):
    """One sentence."""
    code, _, err = explain(tmp_path / "none.json")

    assert code == 1
    assert "none.json can't be read: No such file or directory" in err


def test_a_configuration_decides(tmp_path):
    """That is what explain is for: a policy is tested against recordings."""
    config = tmp_path / "config.yaml"
    config.write_text("mode: audit")

    (found,) = explained("--config", config, EDIT)

    assert (found["verdict"], found["reason"]) == ("Allow", "WouldDeny")


def test_a_bad_configuration_is_one_sentence(tmp_path):
    """Before anything is explained."""
    config = tmp_path / "config.yaml"
    config.write_text("mod: audit")

    done = CliRunner().invoke(driftgate, ["explain", "--config", str(config), str(EDIT)])

    assert done.exit_code == 1
    assert 'did you mean "mode"?' in (done.stderr or str(done.exception))


def test_a_secret_is_not_told(tmp_path):
    """Recordings hold its values; what is printed does not."""
    review = tmp_path / "secret.json"
    review.write_bytes(review_of("UPDATE", old=secret(p="aHVudGVyMg=="), new=secret(p="aHVudGVyMw==")))

    for output in ("text", "json"):
        assert "aHVudGVy" not in explain("-o", output, review)[1]


def test_an_ask_counts_as_not_granted(tmp_path):
    """No right can be asked for offline, and no stamp be read: neither is called forged."""
    review = tmp_path / "ask.json"
    review.write_bytes(review_of("UPDATE", old=deployment(), new=asking(deployment())))

    (found,) = explained(review)

    assert (found["verdict"], found["reason"]) == ("Deny", "Drift")


def test_text_is_defused(tmp_path):
    """A recording may hold whatever somebody wrote."""
    review = tmp_path / "odd.json"
    new = deployment()
    new["spec"]["x\x1b[2J\u202e"] = "\x1b]0;owned\x07"
    review.write_bytes(review_of("UPDATE", old=deployment(), new=new, user={"username": "a\x1b[31m"}))

    _, out, _ = explain(review)

    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", out)

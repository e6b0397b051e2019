"""`lorafit push`: to a directory, and through huggingface_hub to a server of the hub's API."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lorafit.cli.verbs.artifact import push
from lorafit.errors import MachineError, UserError, VerificationError
from tests.verify.hub_server import TOKEN, FakeHub


@pytest.fixture
def artifact(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "artifact"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    fake = FakeHub()
    monkeypatch.setenv("HF_ENDPOINT", fake.url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    yield fake
    fake.http.shutdown()


def pushed(artifact: Path, repo: str | None = None, **options: Any) -> None:
    push(artifact, repo, **{"public": False, "to_dir": None, "allow": [], "message": None,
                            "dry_run": False, "yes": True} | options)


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes()
            for file in folder.rglob("*") if file.is_file()}


def test_a_directory_gets_exactly_what_the_hub_would(artifact, tmp_path, hub, capsys):
    pushed(artifact, to_dir=tmp_path / "there")
    pushed(artifact, f"file://{tmp_path}/too")
    assert files(tmp_path / "there") == files(tmp_path / "too") == files(artifact)
    assert not hub.requests
    pushed(artifact, "me/adapter")
    assert hub.repos["me/adapter"]["files"] == files(artifact)
    assert hub.repos["me/adapter"]["private"]
    assert not [path for _, path, _ in hub.requests if "telemetry" in path]
    shown = capsys.readouterr().out
    assert "adapter_model.safetensors" in shown
    assert "(private)" in shown
    with pytest.raises(UserError, match="already exists"):
        pushed(artifact, to_dir=tmp_path / "there")


def test_a_dry_run_asks_nobody(artifact, hub, capsys):
    pushed(artifact, "me/adapter", dry_run=True, yes=False)
    assert not hub.requests
    assert "nothing was uploaded" in capsys.readouterr().out


def test_public_must_be_said_and_what_exists_is_looked_at(artifact, hub):
    pushed(artifact, "me/open", public=True)
    assert not hub.repos["me/open"]["private"]
    with pytest.raises(UserError, match="exists and is public"):
        pushed(artifact, "me/open")
    (artifact / "README.md").write_text("---\nlicense: mit\n---\nmine\n")
    pushed(artifact, "me/open", public=True)  # again, and changed
    assert hub.repos["me/open"]["files"]["README.md"].endswith(b"mine\n")


def test_what_the_hub_has_is_held_against_the_artifact(artifact, hub):
    hub.spoil = "adapter_config.json"
    with pytest.raises(VerificationError, match=r"adapter_config\.json is another"):
        pushed(artifact, "me/adapter")


def test_tokens_and_the_network_fail_with_one_message(artifact, hub, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "hf_" + "b" * 34)
    with pytest.raises(UserError, match="does not accept the token"):
        pushed(artifact, "me/adapter")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError, match="no token for the hub"):
        pushed(artifact, "me/adapter")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(MachineError, match="cannot be reached"):
        pushed(artifact, "me/adapter")
    for name in ("adapter", "a//b", "me/-x"):
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        with pytest.raises(UserError, match=r"OWNER/NAME|names no owner"):
            pushed(artifact, name)


def test_a_changed_artifact_is_not_uploaded(artifact, hub):
    weights = artifact / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(VerificationError, match=r"adapter_model\.safetensors is changed"):
        pushed(artifact, "me/adapter")
    assert not hub.requests


@pytest.mark.parametrize(("name", "content", "words", "can_be_allowed"), [
    (".env", "A=1", "secret by its name", False),
    ("id_rsa.pub", "ssh", "secret by its name", False),
    ("notes.txt", "my token is " + TOKEN, "a token of the hub", False),
    ("notes.txt", "-----BEGIN RSA PRIVATE KEY-----", "a private key", False),
    ("optimizer.pt", "x", "state of an optimizer", True),
    ("held_out.jsonl", "{}", "rows or logs of training", True),
    ("checkpoints/step-1/adapter_model.safetensors", "x", "a checkpoint", True),
    ("pytorch_model.bin", "x", "a pickle", True),
    ("modeling.py", "print()", "nobody expects it", True),
])
def test_what_nobody_should_see_is_refused(artifact, tmp_path, name, content, words,
                                           can_be_allowed):
    (artifact / name).parent.mkdir(parents=True, exist_ok=True)
    (artifact / name).write_text(content)
    with pytest.raises(UserError, match=words):
        pushed(artifact, to_dir=tmp_path / "there")
    if not can_be_allowed:
        with pytest.raises(UserError, match=words):
            pushed(artifact, to_dir=tmp_path / "there", allow=[name])
        assert not (tmp_path / "there").exists()
        return
    pushed(artifact, to_dir=tmp_path / "there", allow=[name])
    assert (tmp_path / "there" / name).read_text() == content


def test_licences_go_along_links_and_runs_do_not(artifact, exported, tmp_path):
    (artifact / "LICENSE").write_text("free")
    pushed(artifact, to_dir=tmp_path / "there")
    assert (tmp_path / "there" / "LICENSE").exists()
    (artifact / "outside.json").symlink_to("/etc/hostname")
    with pytest.raises(UserError, match="a link to a file outside"):
        pushed(artifact, to_dir=tmp_path / "two")
    with pytest.raises(UserError, match="holds checkpoints and rows"):
        pushed(exported.parent, to_dir=tmp_path / "three")
    (artifact / "outside.json").unlink()
    (artifact / "lorafit_proof.json").unlink()
    with pytest.raises(UserError, match="--against RUN writes one"):
        pushed(artifact, to_dir=tmp_path / "four")


def test_the_command_asks_for_yes_where_nobody_can_answer(artifact):
    done = subprocess.run(
        [sys.executable, "-m", "lorafit", "push", str(artifact), "me/adapter"],
        capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
        env=os.environ | {"HF_HUB_OFFLINE": "1"})
    assert done.returncode == 2
    assert "--yes" in done.stderr
    assert "Traceback" not in done.stderr

"""Passwords and tokens are refused in recipes, and hidden in what is printed and written."""

import sys
from pathlib import Path

import pytest

from lorafit.cli import main as cli
from lorafit.errors import UserError
from lorafit.names import is_name
from lorafit.recipe.loading import load_recipe
from lorafit.secrets import HIDDEN, redacted, secret_in, without_secrets
from lorafit.serve.names import split_name
from tests.cli.test_bad_input import RECIPE

HUB = "hf_" + "Ab1" * 12
SECRETS = {
    "a token of the hub": HUB,
    "a password in an address": "https://me:hunter22@host/x.jsonl",
    "a token in an address": "https://oauth2-token-0123456789@host/x.jsonl",
    "a token in a query": "https://host/x.jsonl?a=1&token=abcdef",
    "a key of an API": "sk-" + "a" * 30,
    "a key of AWS": "AKIA" + "A" * 16,
    "a signed address": "https://bucket/x?X-Amz-Signature=abc123",
}


@pytest.mark.parametrize("name", SECRETS)
def test_a_recipe_with_a_secret_is_refused_without_being_repeated(
        name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch) -> None:
    secret = SECRETS[name]
    recipe = tmp_path / "r.yaml"
    recipe.write_text(RECIPE.replace("rows.jsonl", f"'{secret}'"))
    for arguments in (["check", str(recipe)],
                      ["check", str(recipe), f"--set=data.eval={secret}"]):
        monkeypatch.setattr(sys, "argv", ["lorafit", *arguments])
        assert cli._run() == 2
        said = capsys.readouterr().err
        assert "holds what looks like" in said
        assert "r.yaml:6" in said or "--set" in said
        assert secret not in said
        assert "hunter22" not in said


def test_what_the_environment_has_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef0123")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    monkeypatch.setenv("TOKEN_FILE", "/home/me/.cache/token")
    assert redacted("key 0123456789abcdef0123, false, /home/me/.cache/token") == \
        f"key {HIDDEN}, false, /home/me/.cache/token"
    assert without_secrets({"a": [HUB, 1, None]}) == {"a": [HIDDEN, 1, None]}


@pytest.mark.parametrize("text", [
    "https://host/a.jsonl", "data/train.jsonl", "mailto:me@host", "hf_transfer", "s3://bucket/key",
    "user: a@b.c", "https://host/a@b", "token", "a?b=c", "git@github.com:a/b.git"])
def test_ordinary_texts_are_none(text: str) -> None:
    assert secret_in(text) is None
    assert redacted(text) == text


def test_a_bugs_traceback_hides_them_too(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        raise RuntimeError(f"cannot fetch https://me:hunter22@host/ with {HUB}")
    except RuntimeError as error:
        cli._show_bug(type(error), error, error.__traceback__)
    said = capsys.readouterr().err
    assert "RuntimeError: cannot fetch" in said
    assert HUB not in said
    assert "hunter22" not in said


@pytest.mark.parametrize(("text", "fits"), [
    ("a", True), ("A-b_c.1", True), ("a" * 64, True), ("a" * 65, False), ("", False), (".", False),
    ("..", False), ("...", False), ("a/b", False), ("a b", False), ("é", False), ("a\n", False),
    ("a\0", False), ("..\\a", False)])
def test_names(text: str, fits: bool) -> None:
    assert is_name(text) is fits


@pytest.mark.parametrize("name", ["../x", "..", "http://x", "a b", "a" * 65])
def test_an_adapters_name_stays_in_its_place(name: str) -> None:
    with pytest.raises(UserError, match="is no name"):
        split_name(f"{name}=runs/a")


def test_a_recipe_without_secrets_is_read(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE)
    assert load_recipe(tmp_path / "r.yaml").data.train

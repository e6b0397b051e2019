"""`lorafit verify --endpoint` against a real server process, sound and broken in the usual ways."""

import json
import socket
from pathlib import Path

import pytest

from lorafit.errors import UserError, VerificationError
from lorafit.model.trained import open_adapter
from lorafit.verify.endpoint import Endpoint
from lorafit.verify.hearing import AskedOf
from lorafit.verify.served import verify_served


def verified(server: str, way: str, run: Path, *, base_name=None, name="tuned", key=None):
    return verify_served(Endpoint(f"{server}/{way}/v1", key, 60), open_adapter(run),
                         AskedOf(name, base_name, prompts=4, tokens=8))


def figure(found, name):
    return next(each for each in found.compared[0].figures if each.name.startswith(name))


def test_a_sound_server_agrees_in_every_figure(server, run):
    found = verified(server, "vllm", run)
    assert found.passed
    assert not found.remarks
    assert "4 of 4 as in training, token by token" in figure(found, "prompt from").value
    assert "4 of 4 as the trainer's, by token ids" in figure(found, "answers to").value
    assert "4 of 4 as the trainer's, by token ids" in figure(found, "answers in chat").value
    assert figure(found, "log-prob").passed
    assert "answers that training changed differ there too" in figure(found, "effect").value


def test_an_adapter_that_is_loaded_and_not_applied_has_no_effect(server, run):
    found = verified(server, "ignores", run)
    assert not found.passed
    assert found.remarks[0].startswith("NO EFFECT")
    assert figure(found, "effect").passed is False
    assert figure(found, "log-prob").passed is False
    assert figure(found, "prompt from").passed


def test_another_chat_template_is_found_at_its_first_token(server, run):
    found = verified(server, "template", run)
    assert not found.passed
    assert figure(found, "prompt from").passed is False
    assert "/tokenize" in figure(found, "prompt from").value
    assert figure(found, "answers to").passed  # the weights are right
    text = next(remark for remark in found.remarks if "differs from token" in remark)
    assert "'\\n'" in text  # which training's template has and this one lacks
    assert "'<|assistant|>'" in text


def test_llama_cpp_tells_its_prompt_by_template_and_tokens(server, run):
    found = verified(server, "llama", run)
    assert found.passed
    assert "/apply-template and /tokenize" in figure(found, "prompt from").value
    assert "by text" in figure(found, "answers in chat").value


def test_a_server_that_only_counts_is_weak_evidence_and_enough_for_an_answer(server, run):
    found = verified(server, "counts", run)
    assert found.passed
    assert "a count alone: weak evidence" in figure(found, "prompt from").value
    assert any("does not take prompts of token ids" in remark for remark in found.remarks)


def test_names_that_the_server_lacks_are_answered_with_those_it_has(server, run):
    with pytest.raises(UserError, match=r"no model 'tunde'(?s:.*)base, tuned"):
        verified(server, "vllm", run, name="tunde")
    with pytest.raises(UserError, match="of the base and of the adapter"):
        verified(server, "vllm", run, base_name="tuned")


def test_servers_that_do_not_answer_are_told_apart(server, run):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"
    for url, key, timeout_s, words in [
        (nobody, None, 5, "nothing answers there"),
        (f"{server}/slow", None, 0.2, "does not answer within"),
        (f"{server}/page", None, 5, "answers otherwise than the OpenAI API"),
        (f"{server}/locked", None, 5, "refuses access"),
        (f"{server}/locked", "wrong", 5, "api-key-env"),
        (f"{server}/nowhere/v1/more", None, 5, "does not list its models"),
        ("localhost:8000", None, 5, "no address of a server"),
    ]:
        with pytest.raises(UserError, match=words):
            Endpoint(url, key, timeout_s).models()
    assert [each.name for each in Endpoint(f"{server}/locked", "open", 5).models()] == \
        ["base", "tuned"]


def test_rows_that_are_gone_leave_the_template_unchecked_and_say_so(server, run, copy):
    again = copy(run)
    text = (again / "recipe.yaml").read_text()
    (again / "recipe.yaml").write_text(text.replace("eval.jsonl", "gone.jsonl"))
    found = verified(server, "vllm", again)
    assert found.passed
    assert any("chat template was not compared" in remark for remark in found.remarks)


def test_the_verb_has_a_verdict_figures_for_scripts_and_a_key_from_the_environment(
        server, run, tmp_path, monkeypatch):
    from lorafit.cli.verbs.artifact import verify_endpoint

    def ask(way: str, key: str | None = None, name: str | None = "tuned", **changes):
        options = {"prompts": 2, "tokens": 4, "tie": None, "timeout_s": 60.0, "json_to": None}
        verify_endpoint(None, run, None, f"{server}/{way}", name, None, key,
                        **options | changes)

    ask("vllm", json_to=tmp_path / "figures.json")
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["passed"]
    assert figures["compared"][0]["facts"]["answers in chat"] == 2
    with pytest.raises(VerificationError, match="NO EFFECT"):
        ask("ignores")
    with pytest.raises(VerificationError, match=r"chat_template\.jinja"):
        ask("template")
    monkeypatch.setenv("A_KEY", "open")
    ask("locked", "A_KEY", prompts=1, tokens=1)
    with pytest.raises(UserError, match="no such variable"):
        ask("locked", "NO_KEY")
    with pytest.raises(UserError, match="name of the adapter is missing"):
        ask("vllm", name=None)

"""The small server as clients see it: a real process, real adapters, one after the other and at
once."""

import json
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.serve.conftest import JSON, KEY, QUESTION, WITH_KEY, Server

NAMES = {"tiny": "plain", "plain": "plain", "second": "other", "rslora": "rslora", "dora": "dora"}
SAID = [QUESTION, "Hi", "How much is 12 and 12? Please. Yes, please, and tell me why.",
        "How much is 3 and 3?", "Say a word.", "How much is 9 and 9?"]


def test_each_name_answers_as_its_run_does(server: Server, generated: Any) -> None:
    for name, run in NAMES.items():
        expected = generated(run, base=name == "tiny")
        assert server.chat(name)["message"] == {"role": "assistant", "content": expected}
    answers = {server.chat(name)["message"]["content"] for name in NAMES}
    assert len(answers) == len(NAMES), "the adapters should differ"


def test_the_prompt_is_the_one_that_was_trained(server: Server, run_of: Any) -> None:
    """Row by row: what /tokenize gives is how the tokens of the run's held-out row begin."""
    rows = [json.loads(line) for line in
            (run_of("plain") / "held_out.jsonl").read_text().splitlines()]
    for n, row in enumerate(rows, 100):
        told = server.post("/tokenize", model="plain", return_token_strs=True, messages=[
            {"role": "user", "content": f"How much is {n} and {n}?"}])
        ids = row["token_ids"]
        assert told["tokens"] == ids[: told["count"]]
        assert len(ids) - 12 < told["count"] == len(told["token_strs"]) < len(ids)
        assert server.post("/detokenize", tokens=ids)["prompt"].count("<|end|>") == 2


def test_many_clients_at_once_get_what_each_would_get_alone(server: Server) -> None:
    asked = [(name, said) for said in SAID for name in NAMES]
    alone = [server.chat(name, said) for name, said in asked]
    together: list[Any] = [None] * len(asked)

    def ask(i: int) -> None:
        together[i] = server.chat(*asked[i])

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(asked))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone


def test_streamed_is_what_is_not_streamed(server: Server) -> None:
    body: dict[str, Any] = {"temperature": 0, "max_tokens": 20, "return_token_ids": True}
    for name in NAMES:
        messages = [{"role": "user", "content": QUESTION}]
        whole = server.post("/v1/chat/completions", model=name, messages=messages, logprobs=True,
                            top_logprobs=2, **body)
        chunks = server.stream("/v1/chat/completions", model=name, messages=messages,
                               logprobs=True, top_logprobs=2,
                               stream_options={"include_usage": True}, **body)
        choices = [chunk["choices"][0] for chunk in chunks[:-1]]
        choice = whole["choices"][0]
        assert choices[0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(each["delta"].get("content", "") for each in choices) \
            == choice["message"]["content"]
        assert [token for each in choices for token in each["token_ids"]] == choice["token_ids"]
        assert [token for each in choices for token in (each["logprobs"] or {"content": []})[
            "content"]] == choice["logprobs"]["content"]
        assert [each["finish_reason"] for each in choices if each["finish_reason"]] \
            == [choice["finish_reason"]]
        assert chunks[0]["prompt_token_ids"] == whole["prompt_token_ids"]
        assert chunks[-1]["choices"] == []
        assert chunks[-1]["usage"] == whole["usage"]
        assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}


def test_a_completion_goes_on_with_text_or_tokens(server: Server) -> None:
    text = "<|user|>\nHow much is 7 and 7?<|end|>\n<|assistant|>\n"
    ids = server.post("/tokenize", model="plain", prompt=text)["tokens"]
    told = server.post("/v1/completions", model="plain", prompt=ids, temperature=0,
                       max_tokens=24, return_token_ids=True, logprobs=1)
    chat = server.chat("plain")
    choice = told["choices"][0]
    assert choice["text"] == chat["message"]["content"]
    assert choice["prompt_token_ids"] == ids
    assert choice["token_ids"] == chat["token_ids"]
    assert told["usage"]["completion_tokens"] == len(choice["logprobs"]["tokens"])
    # Greedy: each token is the most likely one, told with the same probability.
    for token, logprob, top in zip(choice["logprobs"]["tokens"],
                                   choice["logprobs"]["token_logprobs"],
                                   choice["logprobs"]["top_logprobs"], strict=True):
        assert top == {token: logprob}
    several = server.post("/v1/completions", model="plain", prompt=[text, "Once"], temperature=0)
    assert [choice["index"] for choice in several["choices"]] == [0, 1]
    chunks = server.stream("/v1/completions", model="plain", prompt=[text, "Once"], temperature=0)
    for i, choice in enumerate(several["choices"]):
        mine = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == i]
        assert "".join(c["text"] for c in mine) == choice["text"]


def test_what_ends_an_answer(server: Server) -> None:
    whole = server.chat("plain")
    text = whole["message"]["content"]
    assert whole["finish_reason"] == "stop"
    assert whole["stop_reason"] is None
    word = text.split()[1]
    stopped = server.chat("plain", stop=["no such text", word])
    assert stopped["message"]["content"] == text[: text.index(word)]
    assert (stopped["finish_reason"], stopped["stop_reason"]) == ("stop", word)
    kept = server.chat("plain", stop=word, include_stop_str_in_output=True)
    assert kept["message"]["content"] == text[: text.index(word) + len(word)]
    third = whole["token_ids"][2]
    by_token = server.chat("plain", stop_token_ids=[third])
    assert by_token["token_ids"] == whole["token_ids"][:3]
    assert by_token["stop_reason"] == third
    short = server.chat("plain", max_tokens=2)
    assert (short["finish_reason"], len(short["token_ids"])) == ("length", 2)
    assert len(server.chat("plain", ignore_eos=True, max_tokens=30)["token_ids"]) == 30


def test_what_is_drawn_follows_the_seed_whoever_else_asks(server: Server) -> None:
    def drawn(seed: int) -> str:
        return str(server.chat("tiny", seed=seed, temperature=1.5, top_p=0.95,
                               top_k=200)["token_ids"])

    alone = [drawn(seed) for seed in range(6)]
    assert len(set(alone)) > 1
    together = [""] * 6

    def ask(seed: int) -> None:
        together[seed] = drawn(seed)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone


def test_adapters_come_and_go_and_leave_the_others_as_they_were(
    server: Server, run_of: Any, generated: Any,
) -> None:
    runs = ("saved", "paca")
    before = {name: server.chat(name) for name in NAMES}
    for run in runs:
        said = server.post("/v1/load_lora_adapter", lora_name=f"new-{run}.1",
                           lora_path=str(run_of(run)))
        assert "success" in said.lower()
        assert server.chat(f"new-{run}.1")["message"]["content"] == generated(run)
        assert {name: server.chat(name) for name in NAMES} == before
    status, models = server.send("GET", "/v1/models")
    listed = {each["id"]: each for each in models["data"]}
    assert listed["new-paca.1"]["parent"] == "tiny"
    assert listed["tiny"]["parent"] is None
    status, said = server.send("POST", "/v1/load_lora_adapter", {
        "lora_name": "plain", "lora_path": str(run_of("other"))})
    assert status == 400
    assert "already" in said["error"]["message"]
    for run in runs:
        server.post("/v1/unload_lora_adapter", lora_name=f"new-{run}.1")
        status, said = server.send("POST", "/v1/chat/completions", {
            "model": f"new-{run}.1", "messages": [{"role": "user", "content": "Hi"}]})
        assert status == 404
    assert {name: server.chat(name) for name in NAMES} == before


def test_an_adapter_that_does_not_fit_is_refused_and_the_others_stay(
    server: Server, run_of: Any, tmp_path: Path,
) -> None:
    from safetensors.torch import load_file, save_file

    before = {name: server.chat(name) for name in NAMES}
    broken = tmp_path / "broken"
    broken.mkdir()
    source = run_of("plain") / "adapter"
    config = json.loads((source / "adapter_config.json").read_text())
    (broken / "adapter_config.json").write_text(json.dumps(config))
    tensors = load_file(source / "adapter_model.safetensors")
    save_file({name: tensor[:, :-1].contiguous() for name, tensor in tensors.items()},
              broken / "adapter_model.safetensors")
    for path, expected in ((broken, 400), (tmp_path / "missing", 404), (tmp_path, 400)):
        status, said = server.send("POST", "/v1/load_lora_adapter", {
            "lora_name": "bad", "lora_path": str(path)})
        assert status == expected, said
        assert str(path) in said["error"]["message"]
    assert {name: server.chat(name) for name in NAMES} == before
    assert "bad" not in str(server.send("GET", "/v1/models"))


@pytest.mark.parametrize(("body", "status", "words"), [
    ({"model": "nobody"}, 404, ["nobody", "tiny", "second"]),
    ({"messages": []}, 400, ["at least one message"]),
    ({"messages": [{"role": "judge", "content": "Hi"}]}, 400, ["judge", "user"]),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, ["only text"]),
    ({"n": 2}, 400, ["n: 2 is not offered"]),
    ({"logit_bias": {"5": 1}}, 400, ["logit_bias"]),
    ({"temprature": 1}, 400, ["temprature", "no such parameter"]),
    ({"temperature": -1, "top_p": "much"}, 400, ["temperature", "top_p"]),
    ({"max_tokens": 0}, 400, ["max_tokens"]),
    ({"max_tokens": 5000}, 400, ["2048", "5000"]),
    ({"seed": 1.5}, 400, ["seed"]),
], ids=lambda value: str(value)[:40] if isinstance(value, dict) else "")
def test_a_wrong_request_is_told_what_is_wrong(
    server: Server, body: dict[str, Any], status: int, words: list[str],
) -> None:
    got, said = server.send("POST", "/v1/chat/completions", {
        "model": "plain", "messages": [{"role": "user", "content": "Hi"}], **body})
    assert got == status
    assert said["error"].keys() == {"message", "type", "param", "code"}
    assert all(word in said["error"]["message"] for word in words), said


def test_what_is_no_request_at_all(server: Server) -> None:
    path = "/v1/chat/completions"
    assert server.send("POST", path, b"{", JSON)[0] == 400
    assert server.send("POST", path, b"[1]", JSON)[0] == 400
    assert server.send("POST", path, b"{}", {"Content-Type": "text/plain", **WITH_KEY})[0] == 415
    assert server.send("POST", path, b"x" * (5 * 2**20), JSON)[0] == 413
    assert server.send("POST", "/v1/nothing", {})[0] == 404
    assert server.send("GET", "/nothing")[0] == 404
    status, said = server.send("POST", "/v1/completions", {
        "model": "plain", "prompt": [5, 10**6]})
    assert status == 400
    assert "1000000" in said["error"]["message"]
    assert server.send("GET", "/health") == (200, {"status": "ok"})


def test_a_client_that_leaves_frees_its_place(server: Server) -> None:
    body = json.dumps({"model": "plain", "messages": [{"role": "user", "content": "Hi"}],
                       "stream": True, "ignore_eos": True, "max_tokens": 2000})
    head = (f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
            f"Authorization: Bearer {KEY}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n")
    started = time.perf_counter()
    for is_streamed in (True, False):
        sent = body if is_streamed else body.replace("true, \"ignore", "false, \"ignore")
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall((head.replace(str(len(body)), str(len(sent))) + sent).encode())
            if is_streamed:
                assert b"data: " in connection.recv(2**16) + connection.recv(2**16)
            else:
                time.sleep(0.3)
        server.chat("plain")
    left_s = time.perf_counter() - started
    started = time.perf_counter()
    server.chat("plain", ignore_eos=True, max_tokens=100)
    # Two answers of 2,000 tokens would take forty times as long.
    assert left_s < 2 + 5 * (time.perf_counter() - started)


def test_a_key_is_asked_for(server: Server) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": KEY[:-1]}):
        status, said = server.send("GET", "/v1/models", headers=headers)
        assert status == 401
        assert said["error"]["type"] == "authentication_error"
    assert server.send("GET", "/v1/models", headers=WITH_KEY)[0] == 200
    assert server.send("GET", "/health", headers={})[0] == 200

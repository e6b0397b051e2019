"""Batches, texts, draws and command lines without HTTP."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from lorafit.errors import UserError
from lorafit.model.base import load_tokenizer
from lorafit.recipe.schema import Model
from lorafit.serve.trial.sampling import Wanted, draw
from lorafit.serve.trial.text import TextStream


@cache
def tokenizer() -> Any:
    return load_tokenizer(Model(base="tiny"))


def decode(ids: Any) -> str:
    return str(tokenizer().decode(list(ids), skip_special_tokens=True))


@examples(max_examples=50)
@given(st.text(max_size=60), st.lists(st.text(min_size=1, max_size=3), max_size=3))
def test_pieces_of_text_are_the_text_up_to_the_first_stop(text: str, stop: list[str]) -> None:
    text = text.encode("utf-8", "ignore").decode()
    ids = tokenizer()(text, add_special_tokens=False)["input_ids"]
    whole = decode(ids)
    stream = TextStream(decode, stop)
    pieces = []
    for token in ids:
        pieces.append(stream.add(token))
        if stream.stopped_by is not None:
            break
    pieces.append(stream.finish())
    said = "".join(pieces)
    found = [whole.find(each) for each in stop if each in whole]
    if stream.stopped_by is None:
        assert not found
        assert said == whole
    else:
        # The first stop text that was complete when a token came.
        assert whole.startswith(said + stream.stopped_by)
        assert not any(each in said for each in stop)


def test_rows_of_different_adapters_share_a_batch_and_change_nothing(run_of: Any) -> None:
    """Token for token, in float32, prompts of different lengths, penalties on padding included."""
    from lorafit.serve.lineup import gather
    from lorafit.serve.trial.models import Models

    lineup = gather([str(run_of("plain")), f"second={run_of('other')}", str(run_of("patterns")),
                     str(run_of("prompt_tuning"))])
    models = Models(lineup, max_batch=12)
    wanted = [
        Wanted(adapter, tuple(models.find(adapter).prompts.chat(
            [{"role": "user", "content": said}])), 16, repetition_penalty=penalty)
        for adapter in (None, "plain", "second", "patterns")
        for said, penalty in (("Hi", 1.0), ("How much is 12 and 12? Please, tell me.", 1.3),
                              ("How much is 5 and 5?", 1.0))]
    apart = [Wanted("prompt_tuning", each.prompt, 16) for each in wanted[:3]]

    def answers(some: list[Wanted]) -> list[list[int]]:
        found: list[list[int]] = [[] for _ in some]
        replies = models.worker.submit(some)
        while replies.open:
            event = replies.next(60)
            assert event is not None
            found[event[0]] += getattr(event[1], "tokens", [])
        return found

    together = answers(wanted + apart)
    assert models.worker.batches == [12, 1, 1, 1]  # virtual tokens allow no padding
    assert together == [answers([each])[0] for each in wanted + apart]
    assert len({str(together[i : i + 3]) for i in (0, 3, 6)}) == 3, "the adapters should differ"
    models.worker.stop()


def test_draws_follow_the_probabilities_that_are_left() -> None:
    logits = torch.tensor([2.0, 1.0, 0.5, -1.0, -3.0])
    generator = torch.Generator().manual_seed(0)

    def frequencies(**settings: Any) -> torch.Tensor:
        wanted = Wanted(None, (0,), 1, **settings)
        drawn = torch.tensor([draw(logits, wanted, [], generator) for _ in range(3000)])
        return torch.bincount(drawn, minlength=5) / 3000

    def expected(temperature: float, kept: list[int]) -> torch.Tensor:
        probabilities = torch.zeros(5)
        probabilities[kept] = (logits[kept] / temperature).softmax(-1)
        return probabilities

    for settings, temperature, kept in (
            ({"temperature": 1.0}, 1.0, [0, 1, 2, 3, 4]),
            ({"temperature": 0.5, "top_k": 3}, 0.5, [0, 1, 2]),
            ({"temperature": 1.0, "top_p": 0.7}, 1.0, [0, 1]),
            ({"temperature": 2.0, "min_p": 0.4}, 2.0, [0, 1, 2])):
        assert torch.allclose(frequencies(**settings), expected(temperature, kept), atol=0.04)
    assert draw(logits, Wanted(None, (0,), 1, repetition_penalty=3.0), [], generator) == 1
    assert draw(logits, Wanted(None, (4,), 1, presence_penalty=1.5), [0], generator) == 1


def test_adapters_of_different_bases_are_refused_by_name(run_of: Any, tmp_path: Path) -> None:
    import shutil

    from lorafit.model.base import TINY
    from lorafit.serve.lineup import gather

    shutil.copytree(TINY, tmp_path / "copy")
    with pytest.raises(UserError, match="second was trained on base"):
        gather([str(run_of("plain")), f"second={_moved(run_of('other'), tmp_path)}"])
    with pytest.raises(UserError, match="two adapters are called plain"):
        gather([str(run_of("plain")), f"plain={run_of('other')}"])
    with pytest.raises(UserError, match="as the base is"):
        gather([f"tiny={run_of('plain')}"])


def _moved(run: Path, folder: Path) -> Path:
    """The run's adapter alone, on another copy of its base."""
    import json
    import shutil

    shutil.copytree(run / "adapter", folder / "moved")
    path = folder / "moved" / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"base_model_name_or_path": str(folder / "copy")}))
    return folder / "moved"


def test_an_engine_gets_a_template_that_writes_the_runs_system_message() -> None:
    from lorafit.data.chat import Renderer
    from lorafit.data.examples import Conversation, Message
    from lorafit.serve.template import _with_system, without_marks

    template = tokenizer().chat_template
    system = 'Say "yes"\nor \\ no, für 日本 \U0001f600 {{ x }}'
    own = Renderer(tokenizer(), template=None, render="auto", system=system)
    given = Renderer(tokenizer(), template=_with_system(template, system), render="auto",
                     system=None)
    plain = Renderer(tokenizer(), template=without_marks(template), render="auto", system=system)
    for opening in ((), (Message("system", "Be brief."),)):
        talk = Conversation((*opening, Message("user", "Hi"), Message("assistant", "Yes"),
                             Message("user", "Why?"), Message("assistant", "-")))
        assert given.prompt(talk) == own.prompt(talk) == plain.prompt(talk)
    assert "generation %}" not in without_marks(template)
    assert "generation -%}" not in without_marks(template)


def test_command_lines_of_engines(run_of: Any, tmp_path: Path) -> None:
    from lorafit.serve.engines import ENGINES, choose
    from lorafit.serve.engines.engine import Placed, Plan

    def plan(*ranks: int, **changes: Any) -> Plan:
        values: dict[str, Any] = {
            "base": "org/base", "base_name": "base", "revision": None, "dtype": "float32",
            "quantization": "none", "trust_remote_code": False,
            "adapters": [Placed(f"a{rank}", Path(f"/w/a{rank}"), rank) for rank in ranks],
            "template": Path("/w/t.jinja"), "gguf": tmp_path / "b.gguf", "host": "127.0.0.1",
            "port": 8000, "api_key": "secret", "on_cpu": False,
            "extra": ["--seed", "1"]}
        return Plan(**values | changes)

    vllm = ENGINES["vllm"]
    for ranks, allowed in (((1,), "8"), ((4, 8), "8"), ((8, 17), "32"), ((300,), "320")):
        launch = vllm.launch(["vllm", "serve"], plan(*ranks))
        command = launch.command
        assert command[command.index("--max-lora-rank") + 1] == allowed
        assert command[command.index("--max-loras") + 1] == str(len(ranks))
        assert [f"a{rank}=/w/a{rank}" for rank in ranks] == command[
            command.index("--lora-modules") + 1 : -2]
        assert "secret" not in command
        assert launch.environment == {"VLLM_API_KEY": "secret"}
    spare = vllm.launch(["vllm", "serve"], plan(4, 8, on_cpu=True)).command
    assert spare[spare.index("--max-loras") + 1] == "3"
    assert not vllm.refuse(plan(512))
    assert "512 at most" in vllm.refuse(plan(600))[0].what
    one, two = (ENGINES["llama.cpp"].launch(["llama-server"], plan(*ranks))
                for ranks in ((4,), (4, 8)))
    assert "--lora-init-without-apply" not in one.command
    assert "--lora-init-without-apply" in two.command
    assert any("a8 1" in remark for remark in two.remarks)
    assert ENGINES["llama.cpp"].refuse(plan(4, gguf=None))
    sglang = ENGINES["sglang"].launch(["sglang"], plan(4, 8)).command
    assert sglang[sglang.index("--max-loras-per-batch") + 1] == "3"
    with pytest.raises(UserError, match="unknown engine"):
        choose("vlm", False)
    assert choose("transformers", True) is None

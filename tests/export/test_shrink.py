"""Adapters with fewer ranks: what is left, what it costs, and that plain peft computes it."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lorafit.errors import UserError
from lorafit.export.adapter import export_adapter
from lorafit.export.delta.inspection import inspect_adapter
from lorafit.export.delta.shrink import shrink
from lorafit.model.adapters.files import load_adapter, save_adapter
from lorafit.model.base import TINY
from lorafit.model.trained import open_adapter
from lorafit.run_dir import RunDir

RunOf = Callable[[str], Path]


def config_of(adapter: Path) -> dict[str, Any]:
    return json.loads((adapter / "adapter_config.json").read_text())


@pytest.mark.parametrize("name", ["plain", "rslora", "patterns", "dora", "saved", "layers",
                                  "pissa"])
def test_with_all_energy_kept_the_logits_stay(run_of: RunOf, plain: Any, tmp_path: Path,
                                              name: str) -> None:
    result = shrink(open_adapter(run_of(name)), tmp_path / "same", share=1.0)
    before = plain.logits(TINY, run_of(name) / "adapter")
    after = plain.logits(TINY, tmp_path / "same")
    assert float((after - before).abs().max()) < 1e-3
    assert float((plain.logits(TINY) - before).abs().max()) > 0.05
    assert result.energy_kept == pytest.approx(1)
    assert result.loss == pytest.approx(result.loss_before, abs=1e-4)


@pytest.mark.parametrize("name", ["plain", "rslora", "patterns", "pissa"])
@pytest.mark.parametrize("share", [0.7, 0.99])
def test_each_layer_keeps_the_share_with_the_fewest_ranks(
    run_of: RunOf, plain: Any, tmp_path: Path, name: str, share: float,
) -> None:
    result = shrink(open_adapter(run_of(name)), tmp_path / "small", share=share)
    before = plain.deltas(TINY, run_of(name) / "adapter")
    after = plain.deltas(TINY, tmp_path / "small")
    layers = plain.layers(TINY, tmp_path / "small")
    told = {layer.name: layer for layer in result.layers}
    assert told.keys() == before.keys() == after.keys()
    for key, delta in before.items():
        values = torch.linalg.svdvals(delta.double()).square()
        rank = layers[key].r["default"]
        missed = float((after[key] - delta).double().square().sum() / values.sum())
        assert rank == told[key].rank
        assert missed <= 1 - share + 1e-6
        assert missed == pytest.approx(float(values[rank:].sum() / values.sum()), abs=1e-6)
        assert told[key].energy_kept == pytest.approx(1 - missed, abs=1e-6)
        if rank > 1:
            assert float(values[rank - 1:].sum() / values.sum()) > 1 - share - 1e-6
        assert layers[key].scaling["default"] == 1
    config = config_of(tmp_path / "small")
    assert config["rank_pattern"] == config["alpha_pattern"]
    assert config["r"] == config["lora_alpha"]
    assert not config["use_rslora"]


def test_a_fixed_rank_is_for_servers_with_a_limit(run_of: RunOf, plain: Any,
                                                  tmp_path: Path) -> None:
    result = shrink(open_adapter(run_of("rslora")), tmp_path / "two", rank=2)
    config = config_of(tmp_path / "two")
    assert (config["r"], config["lora_alpha"], config["rank_pattern"]) == (2, 2, {})
    assert {layer.rank for layer in result.layers} == {2}
    assert {layer.rank_before for layer in result.layers} == {8}
    before = plain.deltas(TINY, run_of("rslora") / "adapter")
    after = plain.deltas(TINY, tmp_path / "two")
    missed = sum(float((after[name] - delta).square().sum()) for name, delta in before.items())
    whole = sum(float(delta.square().sum()) for delta in before.values())
    assert result.energy_kept == pytest.approx(1 - missed / whole, abs=1e-5)
    assert result.size_bytes < result.size_before_bytes / 2


def test_the_losses_are_those_of_the_run_and_of_the_result(run_of: RunOf, plain: Any,
                                                           tmp_path: Path) -> None:
    run = run_of("rslora")
    result = shrink(open_adapter(run), tmp_path / "one", rank=1)
    trained = json.loads(RunDir(run).result.read_text())["progress"]["last_eval_loss"]
    assert result.loss_before == pytest.approx(trained, abs=1e-4)
    assert result.rows == "4 held-out rows"
    model = plain.model(TINY, tmp_path / "one")
    total, count = 0.0, 0
    for line in RunDir(run).held_out.read_text().splitlines():
        row = json.loads(line)
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([row["token_ids"]])).logits[0].log_softmax(-1)
        for place, (token, wanted) in enumerate(zip(row["token_ids"], row["supervised"],
                                                    strict=True)):
            if wanted:
                total -= float(logits[place - 1, token])
                count += 1
    assert result.loss == pytest.approx(total / count, abs=1e-4)
    assert result.loss != pytest.approx(result.loss_before, abs=1e-4)
    assert not result.agreement.bit_equal


def test_paca_becomes_a_lora_of_fewer_ranks(run_of: RunOf, plain: Any, tmp_path: Path) -> None:
    shrink(open_adapter(run_of("paca")), tmp_path / "same", share=1.0)
    adapted = load_adapter(plain.model(TINY), run_of("paca") / "adapter")
    with torch.inference_mode():
        before = adapted(input_ids=torch.arange(5, 60)[None]).logits
    assert float((plain.logits(TINY, tmp_path / "same") - before).abs().max()) < 1e-3
    shrink(open_adapter(run_of("paca")), tmp_path / "one", rank=1)
    assert {layer.r["default"] for layer in plain.layers(TINY, tmp_path / "one").values()} == {1}


def test_biases_of_the_base_and_of_b_come_along(make_recipe: Any, train: Any, shrunken: Any,
                                                plain: Any, tmp_path: Path) -> None:
    base = shrunken("qwen2")
    recipe = make_recipe(
        model={"base": str(base)}, training={"learning_rate": 1e-2},
        adapter={"bias": "lora_only", "options": {"lora_bias": True}, "rslora": True,
                 "target_modules": ["q_proj", "v_proj"]})
    train(recipe)
    run = Path(recipe.output.dir)
    tensors = load_file(run / "adapter" / "adapter_model.safetensors")
    assert any(name.endswith("lora_B.bias") and tensor.any() for name, tensor in tensors.items())
    shrink(open_adapter(run), tmp_path / "small", share=1.0)
    before, after = (plain.logits(base, path) for path in (run / "adapter", tmp_path / "small"))
    assert float((after - before).abs().max()) < 1e-4


def test_on_a_quantised_base_losses_are_those_on_it(make_recipe: Any, train: Any,
                                                    tmp_path: Path) -> None:
    recipe = make_recipe(model={"quantization": "nf4", "dtype": "bfloat16"},
                         training={"learning_rate": 1e-2})
    train(recipe)
    run = RunDir(Path(recipe.output.dir))
    result = shrink(open_adapter(run.path), tmp_path / "same", share=1.0)
    progress = json.loads(run.result.read_text())["progress"]
    assert result.loss_before == pytest.approx(progress["best_loss"], rel=2e-2)
    assert result.loss == pytest.approx(result.loss_before, rel=2e-2)


def test_a_loftq_adapter_is_shrunk_in_its_full_precision_form(make_recipe: Any, train: Any,
                                                              tmp_path: Path) -> None:
    recipe = make_recipe(model={"quantization": "nf4", "dtype": "bfloat16"},
                         adapter={"init": "loftq"})
    train(recipe)
    source = open_adapter(Path(recipe.output.dir))
    assert any("LoftQ" in remark for remark in inspect_adapter(source).remarks)
    with pytest.raises(UserError, match="valid on the base in nf4 only"):
        shrink(source, tmp_path / "no", share=0.9)
    export_adapter(source, tmp_path / "exported")
    result = shrink(open_adapter(tmp_path / "exported" / "full_precision"), tmp_path / "small",
                    share=0.9)
    assert result.energy_kept >= 0.9


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_fused_experts_get_a_rank_of_their_own(make_recipe: Any, train: Any, shrunken: Any,
                                               plain: Any, tmp_path: Path, family: str) -> None:
    """gate_up_proj is planted with two directions of four: one rank for all experts of a layer."""
    base = shrunken(family)
    recipe = make_recipe(model={"base": str(base)}, training={"steps": 1})
    train(recipe)
    adapted = load_adapter(plain.model(base), Path(recipe.output.dir) / "adapter")
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_().mul_(0.1)
            if "experts.base_layer.lora_A" in name:
                parameter.view(4, 4, -1)[:, 2:].zero_()
    adapter = tmp_path / "planted"
    adapter.mkdir()
    save_adapter(adapter, adapted)
    shrink(open_adapter(adapter), tmp_path / "small", share=1.0)
    layers = plain.layers(base, tmp_path / "small")
    ranks = {name: layer.r["default"] for name, layer in layers.items()}
    assert {ranks[name] for name in ranks if "gate_up_proj" in name} == {2}
    assert {ranks[name] for name in ranks if "experts.down_proj" in name} == {4}
    before, after = (plain.logits(base, path) for path in (adapter, tmp_path / "small"))
    assert float((after - before).abs().max()) < 1e-4
    assert float((plain.logits(base) - before).abs().max()) > 0.05


def test_equal_adapters_give_equal_bytes(run_of: RunOf, tmp_path: Path) -> None:
    for name in ("one", "two"):
        shrink(open_adapter(run_of("rslora")), tmp_path / name, share=0.8)
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


@pytest.mark.parametrize(("arguments", "message"), [
    (["{plain}", "--shrink", "0"], "0 is no share of the energy"),
    (["{plain}", "--shrink", "1.01"], "1.01 is no share of the energy"),
    (["{plain}", "--shrink", "nan"], "nan is no share of the energy"),
    (["{plain}", "--shrink", "0.9", "--output", "{plain}"], "already exists"),
    (["{ia3}", "--shrink", "0.9"], "ia3 cannot be cut to smaller ranks"),
    (["{prompt_tuning}", "--rank", "2"], "prompt_tuning cannot be cut to smaller ranks"),
    (["{plain}", "--shrink", "0.9", "--base", "{plain}/gone"], "no such directory"),
])
def test_what_cannot_be_shrunk_is_refused_and_nothing_written(
    run_of: RunOf, arguments: list[str], message: str,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:
    from lorafit.cli import main as cli

    places = {name: run_of(name) for name in ("plain", "ia3", "prompt_tuning")}
    monkeypatch.setattr(sys, "argv", ["lorafit", "inspect",
                                      *(word.format(**places) for word in arguments)])
    assert cli._run() == 2
    assert message in capsys.readouterr().err
    assert not any((run / "shrunk").exists() for run in places.values())


def test_the_command_prints_what_was_lost(run_of: RunOf, tmp_path: Path,
                                          capsys: pytest.CaptureFixture[str],
                                          monkeypatch: pytest.MonkeyPatch) -> None:
    from lorafit.cli import main as cli

    target = tmp_path / "small"
    monkeypatch.setattr(sys, "argv", ["lorafit", "inspect", str(run_of("rslora")), "--shrink",
                                      "0.8", "--output", str(target)])
    assert cli._run() == 0
    said = capsys.readouterr().out
    assert "nats per token on 4 held-out rows" in said
    assert "of ‖ΔW‖² over all layers" in said
    assert (target / "tokenizer.json").exists()
    assert not (target / "config.json").exists()

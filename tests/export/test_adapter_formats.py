"""What each format writes, read by hand, is the update that was trained; or it is refused whole."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from lorafit.cli.verbs import run as verbs
from lorafit.errors import UserError, VerificationError
from lorafit.export.adapter import export_adapter
from lorafit.export.formats import FORMATS, format_named, mlx
from lorafit.export.formats.one_rank import OneRank
from lorafit.model.adapters.files import load_adapter
from lorafit.model.base import TINY
from lorafit.model.trained import open_adapter

RunOf = Callable[[str], Path]


def read_peft_file(folder: Path) -> dict[str, torch.Tensor]:
    """ΔW of every layer as a server computes it that knows r and lora_alpha alone."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    deltas = {}
    for key, a in tensors.items():
        if key.endswith(".lora_A.weight"):
            assert len(a) == config["r"]
            b = tensors[key.replace("lora_A", "lora_B")]
            name = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            deltas[name] = config["lora_alpha"] / config["r"] * b @ a
    assert len(tensors) == 2 * len(deltas)
    assert not any(config[key] for key in ("use_rslora", "use_dora", "rank_pattern",
                                           "alpha_pattern", "modules_to_save"))
    return deltas


def read_mlx_files(folder: Path) -> dict[str, torch.Tensor]:
    """ΔW of every layer of the last num_layers that has a key, as mlx-lm computes it."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapters.safetensors")
    settings, deltas = config["lora_parameters"], {}
    for layer in range(4 - config["num_layers"], 4):
        for key in settings["keys"]:
            name = f"model.layers.{layer}.{key}"
            if f"{name}.lora_a" in tensors:
                a, b = tensors.pop(f"{name}.lora_a"), tensors.pop(f"{name}.lora_b")
                assert a.shape[1] == b.shape[0] == settings["rank"]
                deltas[name] = settings["scale"] * (a @ b).T
    assert not [name for name in tensors if not name.endswith(".m")]
    return deltas


def trained_updates(run: Path) -> dict[str, torch.Tensor]:
    """W' − W of every weight that changed, by merging in lorafit's own loader."""
    base = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    before = {name: weight.clone() for name, weight in base.state_dict().items()}
    after = load_adapter(base, run / "adapter").merge_and_unload().state_dict()
    return {name.removesuffix(".weight"): after[name] - weight for name, weight in before.items()
            if not torch.equal(after[name], weight)}


@pytest.mark.parametrize("name", ["plain", "rslora", "by_layer", "layers", "pissa", "paca"])
@pytest.mark.parametrize("form", ["vllm", "sglang", "mlx"])
def test_what_a_program_reads_is_what_was_trained(run_of: RunOf, tmp_path: Path, form: str,
                                                  name: str) -> None:
    run = run_of(name)
    result = export_adapter(open_adapter(run), tmp_path / "out", format_named(form))
    read = (read_mlx_files if form == "mlx" else read_peft_file)(tmp_path / "out")
    trained = trained_updates(run)
    for layer, delta in trained.items():
        torch.testing.assert_close(read.pop(layer), delta, atol=2e-5, rtol=1e-4)
    assert not any(delta.any() for delta in read.values())
    assert not read or form == "sglang"
    assert result.agreement.relative_rms < 1e-5
    assert str(tmp_path / "out") in result.command
    assert not (tmp_path / "out" / "config.json").exists()
    assert (tmp_path / "out" / "tokenizer.json").exists()


@pytest.mark.parametrize("form", ["vllm", "sglang"])
@pytest.mark.parametrize("name", ["plain", "rslora", "pissa"])
def test_one_rank_and_one_scale_stay_the_trained_numbers(run_of: RunOf, tmp_path: Path, form: str,
                                                         name: str) -> None:
    result = export_adapter(open_adapter(run_of(name)), tmp_path / "out", format_named(form))
    trained = load_file(run_of(name) / "adapter" / "adapter_model.safetensors")
    written = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert trained.keys() == written.keys()
    assert all(torch.equal(trained[key], written[key]) for key in trained)
    assert result.agreement.bit_equal


def test_what_servers_get_loads_in_plain_peft_too(run_of: RunOf, plain: Any,
                                                  tmp_path: Path) -> None:
    for name in ("by_layer", "layers"):
        for form in ("vllm", "sglang"):
            folder = tmp_path / f"{name}-{form}"
            export_adapter(open_adapter(run_of(name)), folder, format_named(form))
            torch.testing.assert_close(plain.logits(TINY, folder),
                                       plain.logits(TINY, run_of(name) / "adapter"),
                                       atol=1e-3, rtol=1e-3)


def test_dora_reaches_mlx_with_its_magnitudes(run_of: RunOf, tmp_path: Path) -> None:
    run = run_of("dora")
    export_adapter(open_adapter(run), tmp_path / "out", format_named("mlx"))
    magnitudes = load_file(tmp_path / "out" / "adapters.safetensors")
    updates = read_mlx_files(tmp_path / "out")
    trained = trained_updates(run)
    base = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).state_dict()
    assert updates.keys() == trained.keys()
    for name, delta in updates.items():
        whole = base[f"{name}.weight"] + delta
        scaled = magnitudes[f"{name}.m"][:, None] / whole.norm(dim=1, keepdim=True) * whole
        torch.testing.assert_close(scaled - base[f"{name}.weight"], trained[name], atol=2e-5,
                                   rtol=1e-4)


def test_an_adapter_on_tied_embeddings_reaches_vllm_alone(run_of: RunOf, tmp_path: Path) -> None:
    """Seen right in vLLM 0.32 (docs/engines.md); the remark says that others were not tried."""
    result = export_adapter(open_adapter(run_of("patterns")), tmp_path / "out",
                            format_named("vllm"))
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    a, b = (tensors[f"base_model.model.model.embed_tokens.lora_embedding_{x}"] for x in "AB")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert a.shape == (config["r"], 4096)
    assert b.shape == (256, config["r"])
    assert result.agreement.relative_rms < 1e-5
    assert "two tied weights" in result.remark


def test_sglang_gets_zeros_for_what_it_fuses(run_of: RunOf, tmp_path: Path) -> None:
    """The adapter is on q_proj and up_proj of the last two layers."""
    result = export_adapter(open_adapter(run_of("layers")), tmp_path / "out",
                            format_named("sglang"))
    assert read_peft_file(tmp_path / "out").keys() == {
        f"model.layers.{layer}.{name}" for layer in (2, 3)
        for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj",
                     "mlp.up_proj")}
    assert "zeros for 6 layers" in result.remark


@pytest.mark.parametrize(("name", "form", "words"), [
    ("dora", "vllm", "does not load DoRA"),
    ("dora", "sglang", "does not load DoRA"),
    ("saved", "vllm", "modules trained in full"),
    ("saved", "mlx", "modules trained in full"),
    ("patterns", "sglang", "on the embeddings are not written"),
    ("patterns", "mlx", "embeddings and output head alike"),
    ("ia3", "vllm", "loads LoRA, and this adapter is ia3"),
    ("prompt_tuning", "mlx", "loads LoRA, and this adapter is prompt_tuning"),
    ("full", "sglang", "leaves a model, not an adapter"),
])
def test_what_cannot_be_said_is_refused_with_the_way_out(run_of: RunOf, tmp_path: Path, name: str,
                                                         form: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        export_adapter(open_adapter(run_of(name)), tmp_path / "out", format_named(form))
    assert words in str(caught.value)
    assert all("lorafit " in problem.remedy for problem in caught.value.problems)
    assert not list(tmp_path.iterdir())


def copy_of(run: Path, folder: Path, **changes: Any) -> Path:
    """An adapter by itself, its configuration changed."""
    shutil.copytree(run / "adapter", folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def reasons(adapter: Path, form: str) -> list[str]:
    return [problem.what for problem in format_named(form).refuse(open_adapter(adapter))]


def test_every_reason_is_told_at_once(run_of: RunOf, tmp_path: Path) -> None:
    adapter = copy_of(run_of("dora"), tmp_path / "much", bias="all", lora_bias=True,
                      modules_to_save=["lm_head"], init_lora_weights="pissa",
                      trainable_token_indices=[1])
    found = reasons(adapter, "vllm")
    for words in ("DoRA", "modules trained in full", "bias: all", "bias of B", "altering the base",
                  "trained rows of the embeddings"):
        assert any(words in reason for reason in found), (words, found)


@pytest.mark.parametrize("form", ["vllm", "sglang", "mlx", "gguf"])
def test_an_adapter_that_lacks_tensors_is_refused(run_of: RunOf, tmp_path: Path,
                                                  form: str) -> None:
    """A server would take the layer for one that has no adapter."""
    if form == "gguf":
        pytest.importorskip("gguf", reason="the extra gguf is not installed")
    for what, gone, words in (
            ("layer", lambda key: "layers.2.self_attn.v_proj" in key, "1 of 28 layers have no A"),
            ("target", lambda key: "down_proj" in key, "4 of 28 layers have no A"),
            ("half", lambda key: "layers.1.mlp.up_proj.lora_B" in key, "only one of A and B")):
        adapter = copy_of(run_of("plain"), tmp_path / what)
        weights = adapter / "adapter_model.safetensors"
        save_file({key: tensor for key, tensor in load_file(weights).items() if not gone(key)},
                  weights)
        assert any(words in reason for reason in reasons(adapter, form))


def test_values_that_are_not_finite_and_strangers_are_refused(run_of: RunOf,
                                                              tmp_path: Path) -> None:
    adapter = copy_of(run_of("plain"), tmp_path / "broken")
    weights = adapter / "adapter_model.safetensors"
    tensors = load_file(weights)
    first = next(key for key in tensors if "lora_A" in key)
    tensors[first][0, 0] = torch.nan
    tensors["base_model.model.model.norm.weight"] = torch.ones(256)
    tensors["base_model.model.model.layers.9.mlp.up_proj.lora_A.weight"] = torch.ones(4, 256)
    tensors["base_model.model.model.layers.9.mlp.up_proj.lora_B.weight"] = torch.ones(640, 4)
    save_file(tensors, weights)
    found = reasons(adapter, "vllm")
    for words in ("not finite", "more than A and B", "does not adapt in this base"):
        assert any(words in reason for reason in found), (words, found)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "gpt2", "gpt_oss"])
def test_mixtures_and_layers_stored_the_other_way_round_are_refused(
        make_recipe: Any, train: Any, shrunken: Any, family: str) -> None:
    recipe = make_recipe(model={"base": str(shrunken(family))}, training={"steps": 1})
    train(recipe)
    for form in ("vllm", "sglang", "mlx"):
        found = reasons(Path(recipe.output.dir), form)
        words = "experts of a mixture"
        if family == "gpt2":
            words = "layers called c_" if form == "sglang" else "stored as (in, out)"
        assert any(words in reason for reason in found), (form, found)


@pytest.mark.parametrize("family", ["qwen3", "gemma3_text", "phi3"])
def test_other_architectures(make_recipe: Any, train: Any, shrunken: Any, tmp_path: Path,
                             family: str) -> None:
    recipe = make_recipe(model={"base": str(shrunken(family))}, training={"steps": 1})
    train(recipe)
    for form in ("vllm", "sglang", "mlx"):
        result = export_adapter(open_adapter(Path(recipe.output.dir)), tmp_path / form,
                                format_named(form))
        assert result.agreement.relative_rms < 1e-5


def test_layers_whose_names_a_program_does_not_know_are_refused(make_recipe: Any, train: Any,
                                                                shrunken: Any) -> None:
    recipe = make_recipe(model={"base": str(shrunken("gpt_neox"))}, training={"steps": 1})
    train(recipe)
    assert any("names of mlx-lm's layers are not known for gpt_neox" in reason
               for reason in reasons(Path(recipe.output.dir), "mlx"))
    assert any("no adapters on layers called query_key_value" in reason
               for reason in reasons(Path(recipe.output.dir), "sglang"))


def test_a_writer_that_errs_is_noticed(run_of: RunOf, tmp_path: Path,
                                       monkeypatch: pytest.MonkeyPatch) -> None:
    right = mlx.at_one_rank

    def wrong(adapter: Any) -> OneRank:
        return replace(right(adapter), scale=2 * right(adapter).scale)

    monkeypatch.setattr(mlx, "at_one_rank", wrong)
    with pytest.raises(VerificationError, match="computes other logits"):
        export_adapter(open_adapter(run_of("plain")), tmp_path / "out", format_named("mlx"))
    assert not list(tmp_path.iterdir())


def test_a_limit_of_the_rank_is_kept_and_its_cost_measured(run_of: RunOf, plain: Any,
                                                           tmp_path: Path) -> None:
    source = open_adapter(run_of("rslora"))
    small = replace(format_named("vllm"), largest_rank=4)
    with pytest.raises(UserError, match="rank 8 is above 4") as caught:
        export_adapter(source, tmp_path / "out", small)
    assert "--max-rank 4" in str(caught.value)
    result = export_adapter(source, tmp_path / "out", small, max_rank=2)
    assert result.cut is not None
    assert {layer.rank for layer in result.cut.layers} == {2}
    assert result.cut.loss != pytest.approx(result.cut.loss_before, abs=1e-5)
    assert "--max-lora-rank 8 " in result.command
    updates = read_peft_file(tmp_path / "out")
    for name, delta in trained_updates(run_of("rslora")).items():
        values = torch.linalg.svdvals(delta.double()).square()
        missed = float((updates[name] - delta).double().square().sum())
        assert missed == pytest.approx(float(values[2:].sum()), rel=1e-3)
    same = export_adapter(source, tmp_path / "same", small, max_rank=4)
    assert same.cut is not None
    whole = export_adapter(source, tmp_path / "whole", format_named("vllm"), max_rank=8)
    assert whole.cut is None
    assert whole.agreement.bit_equal


def test_methods_without_ranks_cannot_be_cut(run_of: RunOf, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be cut to smaller ranks"):
        export_adapter(open_adapter(run_of("ia3")), tmp_path / "out", max_rank=4)


def test_equal_adapters_are_equal_bytes(run_of: RunOf, tmp_path: Path) -> None:
    for form, files in (("vllm", ("adapter_model.safetensors", "adapter_config.json")),
                        ("mlx", ("adapters.safetensors", "adapter_config.json"))):
        for name in ("one", "two"):
            export_adapter(open_adapter(run_of("by_layer")), tmp_path / f"{form}-{name}",
                           format_named(form))
        for file in files:
            assert ((tmp_path / f"{form}-one" / file).read_bytes()
                    == (tmp_path / f"{form}-two" / file).read_bytes())


def test_every_named_format_is_there_under_its_name() -> None:
    for name, who in FORMATS.items():
        assert (format_named(name).name, format_named(name).for_what) == (name, who)


def test_a_wrong_name_is_refused_before_anything_heavy_is_loaded(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "lorafit", "export-adapter", str(tmp_path),
         "--format", "vlm"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "no format is called 'vlm'" in done.stderr
    assert "did you mean vllm?" in done.stderr
    assert not re.search(r"\| +torch$", done.stderr, re.MULTILINE)


def test_the_command_says_how_to_serve_it(run_of: RunOf, tmp_path: Path,
                                          capsys: pytest.CaptureFixture[str]) -> None:
    verbs.export_adapter(run_of("rslora"), tmp_path / "out", None, "vllm", 4)
    said = capsys.readouterr().out
    assert "cut       from rank 8 to 4" in said
    assert f"vllm serve {TINY} --enable-lora --max-lora-rank 8" in said
    assert f"--lora-modules rslora={tmp_path / 'out'}" in said


def test_attention_of_a_mixture_is_written(make_recipe: Any, train: Any, shrunken: Any,
                                           tmp_path: Path) -> None:
    recipe = make_recipe(model={"base": str(shrunken("qwen3_moe"))}, training={"steps": 1},
                         adapter={"experts": "none"})
    train(recipe)
    for form in ("vllm", "sglang", "mlx"):
        result = export_adapter(open_adapter(Path(recipe.output.dir)), tmp_path / form,
                                format_named(form))
        assert result.agreement.relative_rms < 1e-5

"""What `inspect` says of an adapter, against the dense ΔW that plain peft computes."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lorafit.errors import UserError
from lorafit.export.delta import factors as thin
from lorafit.export.delta.compare import compare_adapters
from lorafit.export.delta.inspection import inspect_adapter
from lorafit.model.adapters.files import load_adapter
from lorafit.model.base import TINY
from lorafit.model.trained import open_adapter

RunOf = Callable[[str], Path]


def process(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A real `lorafit` process."""
    return subprocess.run([sys.executable, "-m", "lorafit", *arguments], capture_output=True,
                          text=True, timeout=240, env=os.environ.copy())


@pytest.fixture
def lorafit(capsys: pytest.CaptureFixture[str],
            monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """The command in this process: exit code, output, messages."""
    from lorafit.cli import main as cli

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["lorafit", *arguments])
        capsys.readouterr()
        code = cli._run()
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def copied(run: Path, target: Path, **config: Any) -> Path:
    """A run's adapter alone, to be damaged."""
    shutil.copytree(run / "adapter", target)
    path = target / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return target


def changed(adapter: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    tensors = load_file(adapter / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, adapter / "adapter_model.safetensors")
    return adapter


sizes = st.integers(1, 9)


@given(sizes, sizes, sizes, st.integers(0, 1000), st.floats(0.5, 1))
def test_what_is_computed_of_factors_is_what_the_product_has(
    outputs: int, inputs: int, rank: int, seed: int, share: float,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(2, rank, inputs, dtype=torch.float64, generator=generator)
    b = torch.randn(2, outputs, rank, dtype=torch.float64, generator=generator)
    factors = thin.Factors(a, b)
    values = thin.singular_values(factors)
    whole = torch.linalg.svdvals(b @ a)
    count = min(values.shape[1], whole.shape[1])
    torch.testing.assert_close(values[:, :count], whole[:, :count], atol=1e-9, rtol=1e-9)
    assert thin.norm(factors) == pytest.approx(float((b @ a).norm()))
    kept = thin.rank_for(values, share)
    energy = whole.square()
    missed = [1 - float(row[:kept].sum() / row.sum()) for row in energy]
    assert max(missed) <= 1 - share + 1e-12
    if kept > 1:
        assert max(1 - float(row[:kept - 1].sum() / row.sum()) for row in energy) > 1 - share
    near = thin.cut(factors, kept)
    assert near.rank == kept
    error = (near.dense() - b @ a).square().sum(dim=(1, 2))
    torch.testing.assert_close(error, energy[:, kept:].sum(dim=1), atol=1e-9, rtol=1e-6)


@pytest.mark.parametrize("name", ["plain", "rslora", "patterns", "pissa"])
def test_norms_and_spectra_are_those_of_the_dense_update(
    run_of: RunOf, plain: Any, name: str,
) -> None:
    seen = inspect_adapter(open_adapter(run_of(name)))
    weights = plain.model(TINY).state_dict()
    dense = plain.deltas(TINY, run_of(name) / "adapter")
    assert {layer.name for layer in seen.layers} == dense.keys()
    for layer in seen.layers:
        delta = dense[layer.name]
        values = torch.linalg.svdvals(delta.double())
        found = torch.tensor(layer.singular_values, dtype=torch.float64)
        torch.testing.assert_close(found, values[:len(found)], atol=1e-5, rtol=1e-4)
        assert layer.norm == pytest.approx(float(delta.norm()), rel=1e-4)
        assert layer.relative == pytest.approx(
            float(delta.norm() / weights[f"{layer.name}.weight"].norm()), rel=1e-4)
        share = values / values.sum()
        entropy = -float((share * share.clamp_min(1e-300).log()).sum())
        assert layer.effective_rank == pytest.approx(2.718281828 ** entropy, rel=1e-3)
        energy = values.square().cumsum(0) / values.square().sum()
        assert layer.rank_99 == int((energy < 0.99).sum()) + 1
        assert layer.first_share == pytest.approx(float(energy[0]), rel=1e-4)
        assert not layer.problem
    kinds = seen.kinds()
    assert sum(kind.layers for kind in kinds) == len(seen.layers)


def test_the_norm_of_dora_is_that_of_the_weights_it_merges_to(run_of: RunOf, plain: Any) -> None:
    seen = inspect_adapter(open_adapter(run_of("dora")))
    before = plain.model(TINY).state_dict()
    after = plain.model(TINY, run_of("dora") / "adapter").merge_and_unload().state_dict()
    for layer in seen.layers:
        name = f"{layer.name}.weight"
        assert layer.norm == pytest.approx(float((after[name] - before[name]).norm()), rel=1e-3)


@pytest.mark.parametrize("name", ["paca", "full"])
def test_methods_of_lorafits_own_are_measured_by_what_they_merge_to(
    run_of: RunOf, plain: Any, name: str,
) -> None:
    seen = inspect_adapter(open_adapter(run_of(name)))
    before = plain.model(TINY).state_dict()
    after = load_adapter(plain.model(TINY), run_of(name) / "adapter").merge_and_unload()
    after = after.state_dict()
    weights = {layer.name if name == "full" else f"{layer.name}.weight": layer
               for layer in seen.layers}
    assert weights.keys() == {key for key in before if not torch.equal(before[key], after[key])}
    for key, layer in weights.items():
        delta = after[key] - before[key]
        assert layer.norm == pytest.approx(float(delta.norm()), rel=1e-4)
        if delta.ndim == 2:
            values = torch.linalg.svdvals(delta)[:len(layer.singular_values)]
            torch.testing.assert_close(torch.tensor(layer.singular_values), values, atol=1e-4,
                                       rtol=1e-3)


def test_ia3_is_measured_by_the_weights_it_merges_to(run_of: RunOf, plain: Any) -> None:
    seen = inspect_adapter(open_adapter(run_of("ia3")))
    before = plain.model(TINY).state_dict()
    after = plain.model(TINY, run_of("ia3") / "adapter").merge_and_unload().state_dict()
    assert len(seen.layers) == 28
    for layer in seen.layers:
        delta = after[layer.name] - before[layer.name]
        assert layer.norm == pytest.approx(float(delta.norm()), rel=1e-4)
        assert layer.singular_values[0] == pytest.approx(
            float(torch.linalg.matrix_norm(delta, 2)), rel=1e-4)
    assert "merged weights" in seen.measured


def test_what_is_no_weight_is_shown_as_its_own_tensors(run_of: RunOf) -> None:
    seen = inspect_adapter(open_adapter(run_of("prompt_tuning")))
    assert not seen.layers
    assert len(seen.tensors) == 1
    assert "virtual tokens" in seen.measured


def test_dead_and_broken_layers_are_named(run_of: RunOf, tmp_path: Path, lorafit: Any) -> None:
    def plant(tensors: dict[str, torch.Tensor]) -> None:
        tensors["base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"].zero_()
        tensors["base_model.model.model.layers.2.mlp.up_proj.lora_A.weight"][0, 3] = torch.nan

    adapter = changed(copied(run_of("plain"), tmp_path / "a"), plant)
    problems = {layer.name: layer.problem for layer in
                inspect_adapter(open_adapter(adapter)).problems}
    assert problems.keys() == {"model.layers.1.self_attn.q_proj", "model.layers.2.mlp.up_proj"}
    assert "B is zero" in problems["model.layers.1.self_attn.q_proj"]
    assert "not finite" in problems["model.layers.2.mlp.up_proj"]
    code, shown, _ = lorafit("inspect", str(adapter))
    assert code == 0
    assert "2 of 28 layers do nothing, or harm" in shown
    code, _, refused = lorafit("inspect", str(adapter), "--shrink", "0.9")
    assert code == 2
    assert "not finite" in refused


def test_without_its_base_an_adapter_has_absolute_norms_only(run_of: RunOf,
                                                             tmp_path: Path) -> None:
    adapter = copied(run_of("plain"), tmp_path / "a",
                     base_model_name_or_path=str(tmp_path / "gone"))
    seen = inspect_adapter(open_adapter(adapter))
    assert not seen.base_at_hand
    assert any("not on this machine" in remark for remark in seen.remarks)
    assert all(layer.relative is None and layer.norm for layer in seen.layers)
    again = inspect_adapter(open_adapter(adapter, "tiny"))
    assert all(layer.relative for layer in again.layers)


def test_of_the_base_only_the_adapted_tensors_are_read(run_of: RunOf, tmp_path: Path) -> None:
    """Every file without an adapted weight is taken away: no model could be loaded from it."""
    base = tmp_path / "base"
    AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).save_pretrained(
        base, max_shard_size="1MB")
    AutoTokenizer.from_pretrained(TINY).save_pretrained(base)
    source = open_adapter(run_of("layers") / "adapter", str(base))
    index = json.loads((base / "model.safetensors.index.json").read_text())["weight_map"]
    adapted = {f"{layer.name}.weight" for layer in inspect_adapter(source).layers}
    needed = {index[name] for name in adapted}
    for file in base.glob("*.safetensors"):
        if file.name not in needed:
            file.unlink()
    assert len(list(base.glob("*.safetensors"))) < len(set(index.values()))
    assert all(layer.relative for layer in inspect_adapter(source).layers)


def test_fused_experts_are_measured_one_by_one(
    make_recipe: Any, train: Any, shrunken: Any, plain: Any,
) -> None:
    base = shrunken("mixtral")
    recipe = make_recipe(model={"base": str(base)}, training={"learning_rate": 1e-2})
    train(recipe)
    run = Path(recipe.output.dir)
    seen = {layer.name: layer for layer in inspect_adapter(open_adapter(run)).layers}
    dense = plain.deltas(base, run / "adapter")
    assert seen.keys() == dense.keys()
    experts = [name for name in seen if "experts" in name]
    assert len(experts) == 4
    for name, delta in dense.items():
        values = torch.linalg.svdvals(delta.double())
        expected = values.square().mean(dim=0).sqrt() if delta.ndim == 3 else values
        assert seen[name].norm == pytest.approx(float(delta.norm()), rel=1e-4)
        found = torch.tensor(seen[name].singular_values, dtype=torch.float64)
        torch.testing.assert_close(found, expected[:len(found)], atol=1e-5, rtol=1e-4)


def test_the_command_shows_kinds_layers_and_json(run_of: RunOf, tmp_path: Path,
                                                 lorafit: Any) -> None:
    run = str(run_of("plain"))
    kinds = process("inspect", run)
    assert kinds.returncode == 0, kinds.stderr
    assert "self_attn.q_proj" in kinds.stdout
    assert "held-out loss" in kinds.stdout
    assert "model.layers.3.self_attn.q_proj" in lorafit("inspect", run, "--layers")[1]
    code, whole, _ = lorafit("inspect", run, "--json", "-")
    assert code == 0
    values = json.loads(whole)
    assert len(values["layers"]) == 28
    assert len(values["kinds"]) == 7
    target = tmp_path / "seen.json"
    assert lorafit("inspect", run, "--json", str(target))[0] == 0
    assert json.loads(target.read_text()) == values
    code, _, taken = lorafit("inspect", run, "--json", str(target))
    assert code == 2
    assert "already exists" in taken


def test_an_adapter_is_like_itself_and_unlike_another(run_of: RunOf, plain: Any) -> None:
    source = open_adapter(run_of("plain"))
    same = compare_adapters(source, source)
    for pair in same.layers:
        assert pair.cosine == pytest.approx(1)
        assert pair.distance == pytest.approx(0, abs=1e-6)
        assert pair.overlap_in == pytest.approx(1)
        assert pair.overlap_out == pytest.approx(1)
    seen = compare_adapters(source, open_adapter(run_of("rslora")))
    one, other = (plain.deltas(TINY, run_of(name) / "adapter") for name in ("plain", "rslora"))
    for pair in seen.layers:
        a, b = one[pair.name].double(), other[pair.name].double()
        assert pair.cosine == pytest.approx(float((a * b).sum() / (a.norm() * b.norm())), abs=1e-4)
        assert pair.distance == pytest.approx(float((a - b).norm() / a.norm()), rel=1e-4)
        assert pair.norms == pytest.approx((float(a.norm()), float(b.norm())), rel=1e-4)
        (u, _, v), (x, _, y) = (torch.linalg.svd(m) for m in (a, b))
        out = torch.linalg.svdvals(u[:, :4].T @ x[:, :8]).square().mean()
        into = torch.linalg.svdvals(v[:4] @ y[:8].T).square().mean()
        assert pair.overlap_out == pytest.approx(float(out), abs=1e-3)
        assert pair.overlap_in == pytest.approx(float(into), abs=1e-3)
    all_one = torch.cat([one[pair.name].flatten() for pair in seen.layers])
    all_other = torch.cat([other[pair.name].flatten() for pair in seen.layers])
    assert seen.cosine == pytest.approx(
        float(torch.cosine_similarity(all_one, all_other, dim=0)), abs=1e-4)


def test_what_only_one_adapter_has_is_told(run_of: RunOf, lorafit: Any) -> None:
    seen = compare_adapters(open_adapter(run_of("plain")), open_adapter(run_of("layers")))
    assert len(seen.layers) == 4
    assert len(seen.only_first) == 24
    assert not seen.only_second
    code, shown, _ = lorafit("inspect", str(run_of("layers")), "--compare", str(run_of("plain")))
    assert code == 0
    assert "only the second has 24 layers" in shown


def test_adapters_of_other_shapes_and_methods_are_not_compared(
    run_of: RunOf, tmp_path: Path,
) -> None:
    def narrow(tensors: dict[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            if "lora_A" in name:
                tensors[name] = tensor[:, :64].contiguous()

    small = changed(copied(run_of("plain"), tmp_path / "small"), narrow)
    source = open_adapter(run_of("plain"))
    with pytest.raises(UserError, match="of different bases"):
        compare_adapters(source, open_adapter(small))
    with pytest.raises(UserError, match="ia3 cannot be compared"):
        compare_adapters(source, open_adapter(run_of("ia3")))
    renamed = copied(run_of("plain"), tmp_path / "renamed",
                     base_model_name_or_path=str(tmp_path / "else"))
    seen = compare_adapters(source, open_adapter(renamed))
    assert any("different names" in remark for remark in seen.remarks)


@pytest.mark.parametrize(("arguments", "message"), [
    (["{tmp}"], "holds no adapter_config.json"),
    (["{tmp}/none"], "no such run or adapter"),
    (["{damaged}"], "is damaged"),
    (["{half}"], "only one of A and B"),
    (["{run}", "--rank", "2", "--shrink", "0.9"], "exclude each other"),
    (["{run}", "--rank", "2", "--compare", "{run}"], "--compare writes no adapter"),
    (["{run}", "--output", "{tmp}/x"], "nothing is written without"),
    (["{run}", "--json", "{tmp}/no/x.json"], "no such directory"),
])
def test_bad_input_is_one_message(
    run_of: RunOf, tmp_path: Path, arguments: list[str], message: str, lorafit: Any,
) -> None:
    damaged = copied(run_of("plain"), tmp_path / "damaged")
    weights = damaged / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])

    def halve(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"]

    places = {"tmp": tmp_path, "run": run_of("plain"), "damaged": damaged,
              "half": changed(copied(run_of("plain"), tmp_path / "half"), halve)}
    code, _, said = lorafit("inspect", *(word.format(**places) for word in arguments))
    assert code == 2
    assert message in said
    assert "Traceback" not in said

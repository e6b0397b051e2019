"""Bases that are quantised in their files: packed here by hand, so that what is read is known.

Each format is written from the embedded base together with the weights that its numbers stand for,
which a plain model of the same architecture then has: the reference for loss and gradients.
"""

import json
import re
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lorafit.errors import UserError
from lorafit.export.adapter import export_adapter
from lorafit.export.merge import merge
from lorafit.model.adapters.add import add_adapter
from lorafit.model.adapters.facts import describe
from lorafit.model.adapters.files import load_adapter
from lorafit.model.base import TINY, load_base, load_config, meta_model
from lorafit.model.generate import Sampling, answer
from lorafit.model.stored import drops_activations, refuse_misfit, stored_as
from lorafit.model.trained import open_adapter
from lorafit.recipe.adapter import Adapter
from lorafit.recipe.methods import METHODS
from lorafit.recipe.schema import Model
from tests.conftest import adapter_tensors, largest_difference, run_training

CPU = torch.device("cpu")
GROUP = 32
Packed = tuple[dict[str, Tensor], Tensor]  # the file's tensors by suffix, and the weight they mean


def _grid(weight: Tensor, top: float) -> tuple[Tensor, Tensor]:
    """Scale (out, groups) of each group of inputs, and the weight over it, (out, groups, GROUP)."""
    groups = weight.reshape(weight.shape[0], -1, GROUP)
    scale = (groups.abs().amax(-1) / top).half().float()
    return scale, groups / scale[..., None]


def _words(values: Tensor, order: tuple[int, ...] = tuple(range(8))) -> Tensor:
    """Eight 4-bit numbers of the last dimension in an int32, the first of `order` lowest."""
    eights = values.to(torch.int64).unflatten(-1, (-1, 8))
    word = sum(eights[..., place] << (4 * index) for index, place in enumerate(order))
    return torch.where(word >= 2**31, word - 2**32, word).to(torch.int32)


def _gptq(weight: Tensor) -> Packed:
    scale, grid = _grid(weight, 7)
    levels = (grid.round() + 8).clamp(0, 15)
    meant = ((levels - 8) * scale[..., None]).flatten(1)
    zeros = torch.full((weight.shape[1] // GROUP, weight.shape[0]), 7)  # stored less one
    return {"qweight": _words(levels.flatten(1)).T.contiguous(), "qzeros": _words(zeros),
            "scales": scale.T.contiguous().half(),
            "g_idx": (torch.arange(weight.shape[1]) // GROUP).to(torch.int32)}, meant


def _awq(weight: Tensor) -> Packed:
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    scale, grid = _grid(weight, 7)
    levels = (grid.round() + 8).clamp(0, 15)
    meant = ((levels - 8) * scale[..., None]).flatten(1)
    zeros = torch.full((weight.shape[1] // GROUP, weight.shape[0]), 8)
    return {"qweight": _words(levels.flatten(1).T.contiguous(), order),
            "qzeros": _words(zeros, order), "scales": scale.T.contiguous().half()}, meant


def _fp8(weight: Tensor) -> Packed:
    blocks = weight.reshape(weight.shape[0] // 64, 64, -1, 64)
    scale = blocks.abs().amax((1, 3)) / 448
    stored = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn)
    meant = (stored.float() * scale[:, None, :, None]).reshape(weight.shape)
    return {"weight": stored.reshape(weight.shape), "weight_scale_inv": scale}, meant


def _compressed_int4(weight: Tensor) -> Packed:
    scale, grid = _grid(weight, 7)
    levels = grid.round().clamp(-8, 7)
    return {"weight_packed": _words(levels.flatten(1) + 8), "weight_scale": scale,
            "weight_shape": torch.tensor(weight.shape)}, (levels * scale[..., None]).flatten(1)


def _compressed_int8(weight: Tensor) -> Packed:
    scale = weight.abs().amax(1, keepdim=True) / 127
    levels = (weight / scale).round()
    return {"weight": levels.to(torch.int8), "weight_scale": scale}, levels * scale


def _compressed_fp8(weight: Tensor) -> Packed:
    scale = weight.abs().amax(1, keepdim=True) / 448
    stored = (weight / scale).to(torch.float8_e4m3fn)
    return {"weight": stored, "weight_scale": scale}, stored.float() * scale


def _compressed(form: str, bits: int, kind: str, strategy: str, *, activations: bool,
                ) -> dict[str, Any]:
    weights = {"num_bits": bits, "type": kind, "symmetric": True, "strategy": strategy}
    inputs = {**weights, "strategy": "token", "dynamic": True} if activations else None
    if strategy == "group":
        weights["group_size"] = GROUP
    return {"quant_method": "compressed-tensors", "format": form, "ignore": ["lm_head"],
            "quantization_status": "compressed", "config_groups": {"group_0": {
                "targets": ["Linear"], "weights": weights, "input_activations": inputs}}}


# By name: how a weight is packed, and what config.json says of it.
PACKED: dict[str, tuple[Callable[[Tensor], Packed], dict[str, Any]]] = {
    "gptq": (_gptq, {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": True,
                     "desc_act": False, "checkpoint_format": "gptq"}),
    "awq": (_awq, {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True,
                   "version": "gemm"}),
    "fp8": (_fp8, {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3",
                   "weight_block_size": [64, 64]}),
    "compressed-int4": (_compressed_int4,
                        _compressed("pack-quantized", 4, "int", "group", activations=False)),
    "compressed-int8": (_compressed_int8,
                        _compressed("int-quantized", 8, "int", "channel", activations=True)),
    "compressed-fp8": (_compressed_fp8,
                       _compressed("float-quantized", 8, "float", "channel", activations=True)),
}
# Saved by their own library: what is asked of it, and which package it needs.
SAVED = {"nf4": "bitsandbytes", "int8": "bitsandbytes", "torchao-int8": "torchao"}
NEEDS = {"gptq": ("gptqmodel", "optimum"), "awq": ("gptqmodel", "optimum"), "fp8": (),
         **{kind: ("compressed_tensors",) for kind in PACKED if kind.startswith("comp")},
         **{kind: (package,) for kind, package in SAVED.items()}}


def _missing(kind: str) -> list[str]:
    missing = [package for package in NEEDS[kind] if find_spec(package) is None]
    if kind in ("compressed-int8", "compressed-fp8") and not drops_activations():
        missing.append("a newer transformers")
    return missing


def _kinds(*names: str, long: tuple[str, ...] = ()) -> list[Any]:
    """Parameters that are skipped where a package is missing; those of `long` are long tests."""
    return [pytest.param(kind, marks=[pytest.mark.skipif(
        bool(_missing(kind)), reason=f"{' and '.join(_missing(kind))} not installed"),
        *([pytest.mark.long] if kind in long else [])]) for kind in names or NEEDS]


def _write(folder: Path, tensors: dict[str, Tensor], settings: dict[str, Any] | None) -> None:
    folder.mkdir(exist_ok=True)
    for file in TINY.iterdir():
        if file.suffix != ".safetensors":
            shutil.copyfile(file, folder / file.name)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text()) | {"dtype": "float32"}
    if settings is not None:
        config["quantization_config"] = settings
    (folder / "config.json").write_text(json.dumps(config))


def _save_with_library(kind: str, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoModelForCausalLM.from_pretrained(
        TINY, dtype=torch.float32, quantization_config=_library_settings(kind),
    ).save_pretrained(folder)
    AutoTokenizer.from_pretrained(TINY).save_pretrained(folder)


def _library_settings(kind: str) -> Any:
    from transformers import BitsAndBytesConfig, TorchAoConfig

    if kind == "nf4":
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4",
                                  bnb_4bit_compute_dtype=torch.float16)
    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    from torchao.quantization import (
        Int8DynamicActivationInt8WeightConfig,
        Int8WeightOnlyConfig,
    )

    return TorchAoConfig(Int8WeightOnlyConfig(version=2) if kind == "torchao-int8"
                         else Int8DynamicActivationInt8WeightConfig(version=2))


@pytest.fixture(scope="module")
def stored_base(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """Makes, once for each kind, a stored base and the plain base that it means."""
    made: dict[str, tuple[Path, Path]] = {}

    def make(kind: str) -> tuple[Path, Path]:
        if kind not in made:
            root = tmp_path_factory.mktemp(kind)
            made[kind] = (root / "stored", root / "plain")
            _make(kind, *made[kind])
        return made[kind]

    return make


def _make(kind: str, stored: Path, plain: Path) -> None:
    tensors = {name: value.float() for name, value in load_file(TINY / "model.safetensors").items()}
    packed = dict(tensors)
    if kind in PACKED:
        pack, settings = PACKED[kind]
        for name in [name for name in tensors if name.endswith("_proj.weight")]:
            parts, tensors[name] = pack(packed.pop(name))
            packed |= {name.removesuffix("weight") + part: value for part, value in parts.items()}
        _write(stored, packed, settings)
    else:
        _save_with_library(kind, stored)
        base = load_base(Model(base=str(stored)), "float32", "eager", CPU)
        for name in [name for name in tensors if name.endswith("_proj.weight")]:
            layer = base.get_submodule(name.removesuffix(".weight"))
            with torch.no_grad():
                tensors[name] = layer(torch.eye(tensors[name].shape[1])).T.contiguous()
    _write(plain, tensors, None)


def _loss_and_gradients(base: Path, section: Adapter) -> tuple[float, dict[str, Tensor]]:
    """Of an adapter with drawn values, on a fixed batch."""
    model = load_base(Model(base=str(base)), "float32", "eager", CPU)
    adapted = add_adapter(model, section, 0, str(base))
    trained = {name: value for name, value in sorted(adapted.named_parameters())
               if value.requires_grad}
    torch.manual_seed(1)
    with torch.no_grad():
        for value in trained.values():
            value.copy_(0.05 * torch.randn(value.shape))
    ids = torch.randint(5, 4000, (2, 24))
    loss = adapted.eval()(input_ids=ids, labels=ids).loss
    loss.backward()
    return float(loss.detach()), {name: value.grad for name, value in trained.items()
                                  if value.grad is not None}


def _assert_trains_like_dense(stored: Path, plain: Path, section: Adapter) -> None:
    loss, gradients = _loss_and_gradients(stored, section)
    wanted_loss, wanted = _loss_and_gradients(plain, section)
    assert loss == pytest.approx(wanted_loss, rel=1e-4)
    assert gradients.keys() == wanted.keys()
    whole = torch.cat([gradients[name].flatten() for name in wanted])
    reference = torch.cat([wanted[name].flatten() for name in wanted])
    assert float(reference.norm()) > 0
    # GPTQ's layers unpack to 16 bits, so their weights are off by 2e-4.
    assert float((whole - reference).norm() / reference.norm()) < 5e-3


# bitsandbytes' int8 product rounds activations too: see the next test.
@pytest.mark.parametrize("kind", _kinds(*(kind for kind in NEEDS if kind != "int8")))
def test_lora_on_a_stored_base_has_the_gradients_of_the_plain_one(stored_base, kind):
    _assert_trains_like_dense(*stored_base(kind), Adapter(rank=4))


@pytest.mark.parametrize("kind", _kinds("int8"))
def test_int8_differs_from_the_plain_base_by_its_rounding_of_activations_only(stored_base, kind):
    """bitsandbytes passes gradients through its own rounding, so they stay close."""
    loss, gradients = _loss_and_gradients(stored_base(kind)[0], Adapter(rank=4))
    wanted_loss, wanted = _loss_and_gradients(stored_base(kind)[1], Adapter(rank=4))
    assert loss == pytest.approx(wanted_loss, rel=0.02)
    difference = torch.cat([(gradients[name] - wanted[name]).flatten() for name in wanted])
    assert float(difference.norm()) < 0.2 * float(
        torch.cat([value.flatten() for value in wanted.values()]).norm())


@pytest.mark.parametrize("kind", _kinds(long=tuple(NEEDS.keys() - {"nf4", "fp8"})))
def test_a_run_on_a_stored_base_from_training_to_merge(stored_base, make_recipe, tmp_path, kind):
    _assert_a_run_works(*stored_base(kind), make_recipe, tmp_path, like_plain=kind != "int8")


@pytest.mark.long
def test_a_run_on_mxfp4_from_training_to_merge(mxfp4_base, make_recipe, tmp_path):
    _assert_a_run_works(*mxfp4_base, make_recipe, tmp_path, like_plain=True)


def _assert_a_run_works(stored: Path, plain: Path, make_recipe: Any, tmp_path: Path, *,
                        like_plain: bool) -> None:
    """Trained, resumed to the same bytes, answering, exported, merged into the original base only.

    `like_plain`: whether the stored base computes what the plain one does.
    """
    model = {"base": str(stored), "dtype": "float32"}
    whole = make_recipe("whole", model=model)
    result = run_training(whole)
    assert result.progress.last_eval_loss < result.progress.first_eval_loss
    record = json.loads((Path(whole.output.dir) / "record.json").read_text())
    assert record["decisions"][0]["value"] == stored_as(load_config(Model(**model))).label
    assert record["adapter"]["total_parameters"] == describe(add_adapter(
        load_base(Model(base=str(plain)), "float32", "eager", CPU), whole.adapter, 0, "plain",
    )).total_parameters

    parts = make_recipe("parts", model=model)
    run_training(parts)
    run = Path(parts.output.dir)
    for path in (run / "result.json", run / "checkpoints" / "step-00000004"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    run_training(parts, resume=True)
    assert largest_difference(adapter_tensors(whole.output.dir), adapter_tensors(run)) == 0

    answers = [answer(
        load_adapter(load_base(Model(base=str(base)), "float32", "eager", CPU), run / "adapter"),
        open_adapter(run).tokenizer(), ["How much is 1 and 2?"], Sampling(max_new_tokens=8),
        is_chat=False) for base in (stored, plain)]
    assert answers[0] == answers[1] or not like_plain

    assert export_adapter(open_adapter(run), tmp_path / "exported").agreement.bit_equal
    with pytest.raises(UserError, match="give the original base with --base"):
        merge(open_adapter(run), tmp_path / "merged")
    merged = merge(open_adapter(run, base=str(plain)), tmp_path / "merged")
    assert merged.agreement.relative_rms < 1e-4
    # `plain` is what the numbers of the stored base mean, so here the two are one model.
    assert merged.against_quantised.relative_rms < (1e-3 if like_plain else 0.1)


def _stored_config(**settings: Any) -> Any:
    config = load_config(Model(base="tiny"))
    config.quantization_config = settings
    return config


def _refusal(section: Adapter, kind: str) -> str:
    config = _stored_config(**PACKED[kind][1])
    with pytest.raises(UserError) as refused:
        refuse_misfit(section, stored_as(config), meta_model(load_config(Model(base="tiny"))))
    return str(refused.value)


@pytest.mark.parametrize("kind", PACKED)
def test_what_trains_the_base_itself_is_refused_on_every_stored_base(kind):
    assert "trains the stored weights themselves" in _refusal(Adapter(method="full"), kind)
    assert "bias: all trains parameters of the base" in _refusal(Adapter(bias="all"), kind)
    assert "init pissa works on the base's weights" in _refusal(Adapter(init="pissa"), kind)


def test_what_needs_plain_numbers_is_refused_where_weights_stay_packed():
    message = _refusal(Adapter(dora=True, modules_to_save=["q_proj"]), "gptq")
    assert "DoRA needs the numbers" in message
    assert "q_proj is stored in gptq in 4 bits, so it cannot be trained in full" in message
    assert "use lora or oft or miss" in _refusal(Adapter(method="hira"), "awq")
    refuse_misfit(Adapter(dora=True, modules_to_save=["lm_head"]),
                  stored_as(_stored_config(**PACKED["fp8"][1])),
                  meta_model(load_config(Model(base="tiny"))))


def _on_disk(tmp_path: Path, settings: dict[str, Any]) -> Model:
    _write(tmp_path / "base", {"x": torch.zeros(1)}, settings)
    return Model(base=str(tmp_path / "base"))


def test_a_stored_base_is_not_quantised_a_second_time(tmp_path):
    model = _on_disk(tmp_path, PACKED["fp8"][1])
    with pytest.raises(UserError, match=r"fp8 in blocks of 64 × 64 already(.|\n)*leave it out"):
        load_config(model.model_copy(update={"quantization": "nf4"}))


@pytest.mark.parametrize(("settings", "reason"), [
    ({"quant_method": "hqq"}, "does not read saved HQQ"),
    ({"quant_method": "vptq"}, "vptq has not been proven"),
    ({"quant_method": "torchao", "quant_type": {"default": {
        "_type": "Int8DynamicActivationInt8WeightConfig"}}}, "do not pass through the rounding"),
    ({"quant_method": "torchao", "quant_type": {"default": {"_type": "Int4WeightOnlyConfig"}}},
     "has not been proven"),
    ({"quant_method": "compressed-tensors", "format": "pack-quantized",
      "config_groups": {"group_0": {}, "group_1": {}}}, "in several ways"),
])
def test_a_format_whose_gradients_are_wrong_or_unknown_is_refused(tmp_path, settings, reason):
    with pytest.raises(UserError, match=rf"{reason}(.|\n)*use the original base"):
        load_config(_on_disk(tmp_path, settings))


@pytest.mark.parametrize("kind", PACKED)
def test_a_missing_package_is_named_with_its_command(tmp_path, kind):
    model = _on_disk(tmp_path, PACKED[kind][1])
    if not _missing(kind):
        assert load_config(model).quantization_config
        return
    if "a newer transformers" in _missing(kind):
        pytest.skip("refused for another reason")
    with pytest.raises(UserError, match=f"needs {_missing(kind)[0]}(.|\\n)*pip install"):
        load_config(model)


@pytest.mark.skipif(bool(_missing("torchao-int8")), reason="torchao not installed")
def test_rounded_activations_in_torchao_do_give_wrong_gradients(stored_base, tmp_path):
    """Why they are refused: if this fails, torchao has learnt it and the refusal can go."""
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(stored_base("torchao-int8")[1])
    rounded = AutoModelForCausalLM.from_pretrained(
        stored_base("torchao-int8")[1], quantization_config=_library_settings("dynamic"))
    gradients = []
    for model in (plain, rounded):
        model.requires_grad_(False)
        adapted = add_adapter(model, Adapter(rank=4), 0, "x")
        for name, value in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.constant_(value, 0.01)
        ids = torch.arange(5, 29)[None]
        adapted(input_ids=ids, labels=ids).loss.backward()
        gradients.append(torch.cat([value.grad.flatten() for value in adapted.parameters()
                                    if value.grad is not None]))
    assert float((gradients[1] - gradients[0]).norm() / gradients[0].norm()) > 0.5


def test_a_base_whose_files_lack_a_weight_is_refused(tmp_path):
    """transformers would draw it at random."""
    tensors = load_file(TINY / "model.safetensors")
    del tensors["model.layers.2.mlp.up_proj.weight"]
    _write(tmp_path / "base", tensors, None)
    with pytest.raises(UserError, match=r"no weight model\.layers\.2\.mlp\.up_proj"):
        load_base(Model(base=str(tmp_path / "base")), "float32", "eager", CPU)


@pytest.fixture
def mxfp4_base(shrunken, tmp_path) -> tuple[Path, Path]:
    """A small gpt-oss whose experts are pairs of 4-bit floats, each 32 with a power of two; and the
    plain model that they mean."""
    base, plain = shrunken("gpt_oss", intermediate_size=64), tmp_path / "plain-gpt_oss"
    shutil.copytree(base, plain)
    packed = load_file(base / "model.safetensors")
    meant = dict(packed)
    positive = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    values = torch.cat([positive, -positive])
    for name in [name for name in meant if name.endswith(("gate_up_proj", "experts.down_proj"))]:
        groups = packed.pop(name).transpose(1, 2).unflatten(-1, (-1, 32))
        power = groups.abs().amax(-1, keepdim=True).log2().floor() - 2
        codes = ((groups / 2**power)[..., None] - values).abs().argmin(-1)
        meant[name] = (values[codes] * 2**power).flatten(-2).transpose(1, 2).contiguous()
        packed[f"{name}_blocks"] = (codes[..., 0::2] | codes[..., 1::2] << 4).to(torch.uint8)
        packed[f"{name}_scales"] = (power[..., 0] + 127).to(torch.uint8)
    save_file(packed, base / "model.safetensors", metadata={"format": "pt"})
    save_file(meant, plain / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((base / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4"}
    (base / "config.json").write_text(json.dumps(config))
    return base, plain


def test_mxfp4_experts_are_read_as_what_their_numbers_mean(mxfp4_base):
    model, plain = (load_base(Model(base=str(base)), "float32", "eager", CPU)
                    for base in mxfp4_base)
    experts = [name for name, _ in plain.named_parameters() if "experts.gate_up_proj" in name]
    assert experts
    for name, wanted in plain.named_parameters():
        assert torch.equal(model.get_parameter(name), wanted)


def test_the_page_names_the_methods_that_are_offered():
    page = (Path(__file__).parents[2] / "docs" / "quantised-bases.md").read_text()
    torchao = {"quant_method": "torchao",
               "quant_type": {"default": {"_type": "Int8WeightOnlyConfig"}}}
    for start, end, settings in (("- torchao: ", ";", torchao),
                                 ("- gptq and awq: ", ". For", PACKED["gptq"][1])):
        named = re.findall(r"`(\w+)`", page.partition(start)[2].partition(end)[0])
        assert set(named) == stored_as(_stored_config(**settings)).trains


@pytest.mark.long
@pytest.mark.parametrize("kind", _kinds("torchao-int8", "gptq"))
def test_every_method_that_is_offered_on_packed_weights_trains_right(stored_base, kind):
    stored, plain = stored_base(kind)
    offered = stored_as(load_config(Model(base=str(stored)))).trains
    assert offered <= set(METHODS)
    for method in sorted(offered):
        options = {"token_indices": [7, 300]} if method == "trainable_tokens" else {}
        _assert_trains_like_dense(stored, plain, Adapter(method=method, options=options))

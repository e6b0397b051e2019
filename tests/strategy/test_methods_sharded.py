"""Every method, and every variant of LoRA, on two ranks that share the base, beside one process.

Each is trained on two ranks and on one, and gone on with on the other number from a checkpoint: the
same weights come out, and the same losses. Rows are fixed as micro-batches of one, and of three in
a step one rank computes two and the other one, and nothing.
"""

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lorafit.model.base import TINY
from lorafit.recipe.methods import METHODS
from lorafit.recipe.schema import Recipe
from lorafit.run_dir import RunDir
from lorafit.smoke import shrink
from tests.conftest import run_training
from tests.methods.harness import section_of
from tests.strategy.spread import train_sharded

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from layouts.cut import cut_back

LIMIT = 1e-6
RATE = 1e-4
STEPS, STOP = 2, 1
Sections = dict[str, dict[str, Any]]


def methods() -> dict[str, Sections]:
    smaller: dict[str, Any] = {  # than the narrow base's layers
        "shira": {"rank": 8}, "waveft": {"options": {"n_frequency": 100}}}
    return {name: {"adapter": section_of(name, **smaller.get(name, {})).model_dump(
        exclude_unset=True)} for name, row in METHODS.items() if not row.why_not_sharded}


def lora(base: str = "llama", model: dict[str, Any] | None = None,
         training: dict[str, Any] | None = None, **adapter: Any) -> Sections:
    return {"adapter": {"rank": 4, "alpha": 8, **adapter}, "model": {"base": base, **(model or {})},
            "training": training or {}}


NF4, NF4_SINGLE = {"quantization": "nf4"}, {"quantization": "nf4", "double_quantization": False}
FP4, FP4_SINGLE = {"quantization": "fp4"}, {"quantization": "fp4", "double_quantization": False}
WIDE = {"dtype": "bfloat16"}
VARIANTS: dict[str, Sections] = {
    "dora": lora(dora=True), "rslora": lora(rslora=True),
    "every bias": lora("qwen2", bias="all"), "biases of layers": lora("qwen2", bias="lora_only"),
    "transposed layers": lora("gpt2"),
    "tied head trained": lora(modules_to_save=["lm_head"]),
    "tied embeddings trained": lora(modules_to_save=["embed_tokens"]),
    "both trained, untied": lora("untied", modules_to_save=["embed_tokens", "lm_head"]),
    "last norm trained": lora(modules_to_save=["norm"]),
    "B alone": lora(freeze_a=True), "one layer": lora(layers="last:1"),
    "ranks by layer": lora(rank_pattern={"q_proj": 8}, alpha_pattern={"q_proj": 16}),
    "on embeddings": lora(target_modules=["embed_tokens", "q_proj"]),
    "on the tied head": lora(target_modules=["lm_head", "q_proj"]),
    "on the head": lora("untied", target_modules=["lm_head", "q_proj"]),
    "B faster than A": lora(training={"lora_plus_ratio": 16}),
    "clipped": lora(training={"max_grad_norm": 0.01}),
    "computed again": lora(training={"activation_checkpointing": "full"}),
    "each expert, qwen3_moe": lora("qwen3_moe", experts="each"),
    "experts share, qwen3_moe": lora("qwen3_moe", experts="shared"),
    "no experts, qwen3_moe": lora("qwen3_moe", experts="none"),
    "router too": lora("qwen3_moe", experts="each", router=True, rank_per_expert=True),
    "each expert, mixtral": lora("mixtral", experts="each"),
    "experts share, mixtral": lora("mixtral", experts="shared"),
    **{f"start {init}": lora(init=init) for init in (
        "gaussian", "orthogonal", "pissa", "pissa_niter_4", "olora")},
    **{f"start {init}": lora(init=init, init_rows=4) for init in ("eva", "corda", "lora_ga")},
    "loftq on nf4": lora(model=NF4, init="loftq"), "pissa on nf4": lora(model=NF4, init="pissa"),
    "nf4": lora(model=NF4), "nf4, quantised once": lora(model=NF4_SINGLE),
    "fp4": lora(model=FP4), "fp4, quantised once": lora(model=FP4_SINGLE),
    "dora on nf4": lora(model=NF4, dora=True),
    "head trained on nf4": lora(model=NF4, modules_to_save=["lm_head"]),
    "experts on nf4": lora("qwen3_moe", NF4, experts="each"),
    "bfloat16": lora(model=WIDE), "bfloat16, norm trained": lora(model=WIDE,
                                                               modules_to_save=["norm"]),
    "bfloat16, norms of layers trained": lora(model=WIDE, modules_to_save=[
        "input_layernorm", "post_attention_layernorm"]),
    "bfloat16, head trained": lora(model=WIDE, modules_to_save=["lm_head"]),
    "bfloat16, biases": lora("qwen2", WIDE, bias="all"),
    "bfloat16, all norms": {"adapter": {"method": "ln_tuning"}, "model": WIDE},
    "bfloat16, one layer in full": {"adapter": {"method": "full", "layers": "last:1"},
                                    "model": WIDE},
}
# A sum of micro-batches that are rounded to 16 bits depends on their order.
ROUNDED = {name: 5e-5 for name in VARIANTS if name.startswith("bfloat16")} | {"psoft": 3e-6}
SHORT = ("lora", "beft", "cartridge", "vera", "p_tuning", "tied head trained", "B alone")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("sharded"))


def prepared(folder: Path) -> Path:
    for name, first, count in (("train", 0, 12), ("eval", 100, 2)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"messages": [
            {"role": "user", "content": f"How much is {n} and {n + 1}?" + " Please." * (n % 4)},
            {"role": "assistant", "content": f"It is {2 * n + 1}." + " Yes." * (n % 3)}]}) + "\n"
            for n in range(first, first + count)))
    return folder


def base(kind: str, folder: Path) -> str:
    """Two narrow layers of random weights."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    path = folder / kind
    if not path.exists():
        tokenizer = AutoTokenizer.from_pretrained(TINY)
        config = AutoConfig.for_model("llama" if kind == "untied" else kind)
        shrink(config, tokenizer)
        if kind in ("llama", "untied"):
            config.tie_word_embeddings = kind == "llama"
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():  # or every loss is that of equal chances
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(4)
        model.save_pretrained(path)
        tokenizer.save_pretrained(path)
    return str(path)


def recipe(sections: Sections, run: Path, folder: Path) -> Recipe:
    model = {"base": "llama", "dtype": "float32", **sections.get("model", {})}
    return Recipe.model_validate({
        "model": {**model, "base": base(model["base"], folder)}, "adapter": sections["adapter"],
        "data": {"train": str(folder / "train.jsonl"), "eval": str(folder / "eval.jsonl"),
                 "workers": 1, "date": "2026-01-31"},
        "training": {"steps": STEPS, "batch_size": 3, "micro_batch_size": 1, "learning_rate": RATE,
                     "eval_every": STEPS, "checkpoint_every": STOP, "keep_checkpoints": 9,
                     "keep": "last", **sections.get("training", {})},
        "output": {"dir": str(run)}})


def stopped_copy(run: RunDir, to: RunDir) -> None:
    shutil.copytree(run.path, to.path)
    cut_back(to.path, STOP)


def problems(cells: dict[str, Sections], folder: Path) -> dict[str, str]:
    """What is wrong with each, of those with which something is."""
    def runs(kind: str) -> dict[str, Recipe]:
        return {name: recipe(sections, folder / name.replace(" ", "_") / kind, folder)
                for name, sections in cells.items()}

    alone, both = runs("alone"), runs("both")
    for each in alone.values():
        run_training(each)
    more, less = runs("more"), runs("less")
    for name in cells:
        stopped_copy(directory(alone[name]), directory(more[name]))
    said = train_sharded([(each, False) for each in both.values()]
                         + [(each, True) for each in more.values()], folder / "ranks")
    errors = {name: error for name, error in zip([*cells, *cells], said, strict=True) if error}
    found = dict(errors)
    for name in cells:
        if name in errors:
            continue
        stopped_copy(directory(both[name]), directory(less[name]))
        run_training(less[name], resume=True)
        limit = max(LIMIT, ROUNDED.get(name, 0))
        wanted, start = weights(alone[name]), weights(alone[name], start=True)
        differences = {kind: largest(wanted, weights(other[name])) for kind, other in (
            ("two ranks", both), ("one, then two", more), ("two, then one", less))}
        differences["losses"] = max(abs(a - b) for a, b in zip(
            losses(alone[name]), losses(both[name]), strict=True)) * LIMIT / 1e-5
        wrong = {kind: value for kind, value in differences.items() if not value <= limit}
        if wrong:
            found[name] = f"differs by {wrong}"
        elif not largest(wanted, start) > 2 * limit:
            found[name] = f"was moved by {largest(wanted, start)} only"
    return found


def directory(run: Recipe) -> RunDir:
    return RunDir(Path(run.output.dir))


def losses(run: Recipe) -> list[float]:
    lines = [json.loads(line) for line in directory(run).metrics.read_text().splitlines()]
    return [line[key] for line in lines for key in ("loss", "held_out_loss") if key in line]


def weights(run: Recipe, *, start: bool = False) -> dict[str, torch.Tensor]:
    path = directory(run).checkpoint(0) if start else directory(run).adapter
    return {f"{file.name}/{name}": tensor for file in sorted(path.glob("*.safetensors"))
            if file.name != "optimizer.safetensors" for name, tensor in load_file(file).items()}


def largest(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """The largest difference; infinity where there are other weights."""
    if a.keys() != b.keys():
        return float("inf")
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a)


def installed(names: Sequence[str]) -> dict[str, Sections]:
    pytest.importorskip("bitsandbytes")
    pytest.importorskip("sklearn")
    cells = methods() | VARIANTS
    return {name: cells[name] for name in names}


def test_some_methods_and_variants(folder):
    assert problems(installed(SHORT), folder) == {}


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_every_method(folder):
    names = [name for name in methods() if name not in SHORT]
    assert problems(installed(names), folder) == {}


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_every_variant_of_lora(folder):
    assert problems(installed([name for name in VARIANTS if name not in SHORT]), folder) == {}

"""Merging an adapter into its base: planned first, then applied shard by shard, then checked.

The plan says for every tensor of the base what becomes of it. Shards are read, changed and written
one after the other, so memory stays near one shard. What a plan cannot express (fused experts,
checkpoints whose names differ from the modules') is merged in memory by peft, and said so.
"""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lorafit.errors import UserError, VerificationError
from lorafit.export.full_base import on_full_base
from lorafit.export.own import ColumnUpdate, column_updates, trained_weights
from lorafit.export.verify import Agreement, compare, using
from lorafit.model.adapters.files import WEIGHTS, load_adapter, method_of
from lorafit.model.adapters.lora import realised_scale
from lorafit.model.base import TORCH_DTYPES, load_base, load_config, resolve_base
from lorafit.model.stored import stored_as
from lorafit.model.trained import AdapterSource, full_precision
from lorafit.model.weight_files import INDEX, SINGLE
from lorafit.model.weight_files import weight_shards as weight_shards
from lorafit.recipe.methods import METHODS
from lorafit.recipe.schema import Model
from lorafit.run_dir import committed_directory, refuse_existing, write_json

# ‖Δlogits‖ / ‖logits‖ above which a merge counts as failed. Merging rounds every weight once to
# the dtype of the base: a relative error of at most 2⁻⁸ in bfloat16, 2⁻¹¹ in float16.
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 3e-2}


@dataclass(frozen=True)
class Update:
    """The low-rank change of one weight: `scale`·B·A, with DoRA's magnitude where there is one.

    a: (r, in), b: (out, r), magnitude: (out,) or None. `embedding`: the weight is (in, out).
    is_transposed: linear layers are stored as (in, out), which a square weight does not show.
    """

    a: torch.Tensor
    b: torch.Tensor
    scale: float
    magnitude: torch.Tensor | None = None
    embedding: bool = False
    is_transposed: bool = False

    def apply(self, weight: torch.Tensor) -> torch.Tensor:
        """The merged weight in float32."""
        delta = self.scale * (self.b.float() @ self.a.float())
        fits, fits_turned = weight.shape == delta.shape, weight.shape == delta.T.shape
        if self.embedding or (fits_turned and (self.is_transposed or not fits)):
            delta = delta.T
        merged = weight.float() + delta
        if self.magnitude is not None:
            norm = merged.norm(dim=1, keepdim=True)
            merged = self.magnitude.float().reshape(-1, 1) / norm * merged
        return merged


@dataclass
class MergePlan:
    """What happens to each tensor of the base.

    updates, replacements: by tensor name. added: tensors that the base file does not have.
    untie: whether input and output embeddings stop sharing a weight. in_memory: why the shards
    cannot be streamed, empty when they can.
    """

    updates: dict[str, Update | ColumnUpdate] = field(default_factory=dict)
    replacements: dict[str, torch.Tensor] = field(default_factory=dict)
    added: dict[str, torch.Tensor] = field(default_factory=dict)
    untie: bool = False
    in_memory: str = ""


@dataclass(frozen=True)
class MergeResult:
    """Where the model is, how it was merged, and how well it agrees with base + adapter."""

    directory: Path
    updated: int
    replaced: int
    in_memory: str
    agreement: Agreement
    against_quantised: Agreement | None


def merge(source: AdapterSource, output: Path, dtype: str | None = None,
          say: Callable[[str], None] = lambda text: None) -> MergeResult:
    """Write base + adapter as a full-precision model that transformers loads, and check it.

    `dtype` converts the weights; otherwise they stay as they are on disk. VerificationError when
    the merged model does not compute what base + adapter does. An adapter that is valid on a
    quantised base only is converted first.
    """
    refuse_existing(output, "choose another directory with --output")
    row = METHODS.get(method_of(source.config))
    if row is not None and not row.merges:
        raise UserError(
            f"{method_of(source.config)} cannot be merged: {row.why_not_merged}",
            str(source.directory), "use base and adapter together: lorafit export-adapter")
    with on_full_base(source) as converted:
        if converted is not source:
            say("taking off the LoftQ start, which is a mistake on the full-precision base")
        return _merge(converted, source, output, dtype, say)


def _merge(source: AdapterSource, trained: AdapterSource, output: Path, dtype: str | None,
           say: Callable[[str], None]) -> MergeResult:
    """`trained` is the adapter as it was trained, `source` what it is on the full base."""
    folder = base_directory(source)
    shards = weight_shards(folder)
    plan = make_plan(source, folder, shards)
    with committed_directory(output) as partial:
        if plan.in_memory:
            say(f"merging in memory: {plan.in_memory}")
            _merge_in_memory(source, partial, dtype)
        else:
            _merge_shards(plan, folder, shards, partial, dtype, say)
            _copy_settings(plan, folder, partial, dtype)
        source.tokenizer().save_pretrained(partial)
    say("checking the merged model against base + adapter")
    agreement, quantised = _verify(source, trained, output)
    tolerance = _TOLERANCE[_dtype_on_disk(output)]
    result = MergeResult(output, len(plan.updates), len(plan.replacements) + len(plan.added),
                         plan.in_memory, agreement, quantised)
    if not agreement.relative_rms <= tolerance:
        raise VerificationError(
            f"{output}: the merged model differs from base + adapter: relative difference "
            f"{agreement.relative_rms:.2e} (allowed {tolerance:.0e}), top-1 agreement "
            f"{agreement.top1:.2%}\n    do not use it; this is a bug worth reporting"
        )
    return result


def base_directory(source: AdapterSource) -> Path:
    """The base's files on this machine, downloaded if it is on the hub."""
    path = Path(resolve_base(source.model.base))
    if path.is_dir():
        return path
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(
            source.model.base, revision=source.model.revision,
            allow_patterns=["*.safetensors", "*.safetensors.index.json", "*.json"],
        ))
    except Exception as error:
        raise UserError(f"the base cannot be loaded: {str(error).splitlines()[0]}",
                        source.model.base, "give a local copy with --base") from None


def make_plan(source: AdapterSource, folder: Path, shards: dict[str, Path]) -> MergePlan:
    """What becomes of each tensor. UserError when adapter and base do not belong together."""
    base_config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if (stored := base_config.get("quantization_config")) is not None:
        kind = stored.get("quant_method", "a quantised format")
        raise UserError(
            f"the base on disk is stored in {kind}: its weights would have to be rounded again, to "
            "another model than the one that was trained", str(folder),
            "give the original base with --base, or use base and adapter together: "
            "lorafit export-adapter")
    tied = bool(base_config.get("tie_word_embeddings")
                or base_config.get("text_config", {}).get("tie_word_embeddings"))
    plan = MergePlan()
    method = method_of(source.config)
    if method in ("paca", "full"):
        return _plan_own(source, shards)
    if method != "lora":
        plan.in_memory = f"the adapter is {method}"
        return plan
    tensors = load_file(source.directory / WEIGHTS)
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        name = key.removeprefix("base_model.model.")
        if match := re.fullmatch(
            r"(.+)\.lora_(?:embedding_)?([AB]|magnitude_vector)(?:\.weight)?", name
        ):
            parts.setdefault(match[1], {})[match[2]] = tensor
            if "lora_embedding" in name:
                parts[match[1]]["embedding"] = tensor
        else:
            _refuse_homeless_bias(source, name, shards)
            plan.replacements[name.replace(".base_layer.", ".")] = tensor
    for module, part in parts.items():
        weight = f"{module}.weight"
        if module.endswith(("experts", "base_layer")):
            plan.in_memory = "the adapter is on fused expert weights"
            return plan
        if weight not in shards:
            if tied and module == "lm_head":
                plan.untie = True
            else:
                plan.in_memory = f"the base's files do not have a tensor {weight}"
                return plan
        if not {"A", "B"} <= part.keys():
            raise UserError(f"is incomplete: {module} has only one of A and B",
                            str(source.directory), "copy or export the adapter again")
        scale = realised_scale(source.config, module, rank=len(part["A"]))
        update = Update(part["A"], part["B"], scale,
                        part.get("magnitude_vector"), "embedding" in part,
                        bool(source.config.get("fan_in_fan_out")))
        plan.updates[weight] = update
    _plan_tied(plan, shards, tied)
    return plan


def _refuse_homeless_bias(source: AdapterSource, name: str, shards: dict[str, Path]) -> None:
    """UserError for a bias of B in a layer that has no bias to add it to."""
    module = name.removesuffix(".lora_B.bias")
    if module != name and f"{module}.bias" not in shards:
        raise UserError(f"cannot be merged: B has a bias in {module}, and the layer has none",
                        str(source.directory),
                        "use base and adapter together: lorafit export-adapter")


def _plan_own(source: AdapterSource, shards: dict[str, Path]) -> MergePlan:
    """Columns added to, or weights replaced; embeddings that are shared stay so."""
    plan = MergePlan()
    if method_of(source.config) == "paca":
        plan.updates.update(column_updates(source))
    else:
        plan.replacements.update(trained_weights(source, shards))
    missing = next((name for name in (*plan.updates, *plan.replacements) if name not in shards), "")
    if missing:
        plan.in_memory = f"the base's files do not have a tensor {missing}"
    return plan


def _plan_tied(plan: MergePlan, shards: dict[str, Path], tied: bool) -> None:
    """Keep or undo the sharing of input and output embeddings.

    The two must be written apart when training changed one of them only.
    """
    for name in list(plan.replacements):
        if name not in shards and not (tied and name == "lm_head.weight"):
            plan.in_memory = f"the base's files do not have a tensor {name}"
            return
    embedding = next((name for name in shards if name.endswith("embed_tokens.weight")), None)
    if not tied or embedding is None or "lm_head.weight" in shards:
        return
    changed = {*plan.updates, *plan.replacements} & {embedding, "lm_head.weight"}
    if not changed:
        return
    new_head = plan.replacements.get("lm_head.weight")
    new_input = plan.replacements.get(embedding)
    if new_head is not None and new_input is not None and torch.equal(new_head, new_input):
        del plan.replacements["lm_head.weight"]  # trained as one weight, and stays one
        return
    plan.untie = True
    if new_head is not None:
        plan.added["lm_head.weight"] = plan.replacements.pop("lm_head.weight")
        return
    with safe_open(shards[embedding], "pt") as reader:
        original = reader.get_tensor(embedding)
    update = plan.updates.pop("lm_head.weight", None)
    plan.added["lm_head.weight"] = original if update is None else update.apply(original)


def _merge_shards(plan: MergePlan, folder: Path, shards: dict[str, Path], output: Path,
                  dtype: str | None, say: Callable[[str], None]) -> None:
    files = list(dict.fromkeys(shards.values()))
    weight_map = {}
    total_bytes = 0
    for number, file in enumerate(files, 1):
        say(f"shard {number}/{len(files)}")
        merged: dict[str, torch.Tensor] = {}
        with safe_open(file, "pt") as reader:
            for name in reader.keys():
                weight = reader.get_tensor(name)
                wanted = TORCH_DTYPES[dtype] if dtype else weight.dtype
                if name in plan.updates:
                    weight = plan.updates[name].apply(weight).to(wanted)
                elif name in plan.replacements:
                    weight = plan.replacements[name].to(wanted)
                elif weight.is_floating_point():
                    weight = weight.to(wanted)
                merged[name] = weight.contiguous()
        if number == len(files):
            added_dtype = TORCH_DTYPES[dtype] if dtype else _dtype_on_disk(folder)
            merged.update({name: weight.to(added_dtype).contiguous()
                           for name, weight in plan.added.items()})
        target = SINGLE if len(files) == 1 else file.name
        save_file(merged, output / target, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(merged, target))
        total_bytes += sum(weight.nbytes for weight in merged.values())
    if len(files) > 1:
        write_json(output / INDEX, {"metadata": {"total_size": total_bytes},
                                    "weight_map": weight_map})


def _copy_settings(plan: MergePlan, folder: Path, output: Path, dtype: str | None) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    sections = [config, config["text_config"]] if "text_config" in config else [config]
    for section in sections:
        if plan.untie:
            section["tie_word_embeddings"] = False
        if dtype is not None:
            section.pop("torch_dtype", None)
            section["dtype"] = dtype
    write_json(output / "config.json", config)
    if (folder / "generation_config.json").exists():
        shutil.copyfile(folder / "generation_config.json", output / "generation_config.json")


def _merge_in_memory(source: AdapterSource, output: Path, dtype: str | None) -> None:
    """peft's own merge, for what shards cannot express. Needs memory for the whole model."""
    on_disk = dtype or next(
        name for name, value in TORCH_DTYPES.items()
        if value == _dtype_on_disk(base_directory(source))
    )
    base = load_base(full_precision(source.model), on_disk, "eager", torch.device("cpu"))
    merged = load_adapter(base, source.directory).merge_and_unload(safe_merge=True)
    merged.save_pretrained(output)


def _verify(source: AdapterSource, as_trained: AdapterSource,
            merged: Path) -> tuple[Agreement, Agreement | None]:
    """Merged against base + adapter, both computed in float32; and, for a quantised run, against
    the quantised base that the adapter was trained on."""
    rows = source.rows()
    device = torch.device("cpu")
    model = full_precision(source.model)
    other = using(lambda: load_base(
        model.model_copy(update={"base": str(merged), "revision": None}), "float32", "eager",
        device), rows)
    reference = using(lambda: load_adapter(
        load_base(model, "float32", "eager", device), source.directory), rows)
    agreement = compare(reference, other)
    quantised = _quantised_base(source)
    if quantised is None:
        return agreement, None
    trained = using(lambda: load_adapter(
        load_base(quantised, "float32", "eager", device), as_trained.directory), rows)
    return agreement, compare(trained, other)


def _quantised_base(source: AdapterSource) -> Model | None:
    """The quantised base of training; None where it was not quantised, or is not at hand."""
    if source.model.quantization != "none":
        return source.model
    if source.recipe is None:
        return None
    try:
        stored = stored_as(load_config(source.recipe.model))
    except UserError:
        return None
    return source.recipe.model if stored is not None else None


def _dtype_on_disk(folder: Path) -> torch.dtype:
    """The coarsest floating-point dtype among a model's tensors."""
    found = set()
    names = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    for file in set(weight_shards(folder).values()):
        with safe_open(file, "pt") as reader:
            found |= {names.get(reader.get_slice(name).get_dtype(), torch.float32)
                      for name in reader.keys()}
    return max(found, key=lambda dtype: _TOLERANCE[dtype])

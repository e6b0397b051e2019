"""What becomes of each tensor of a base when an adapter is merged into it.

A plan says which tensors are updated, replaced and added, and why it cannot be carried out file by
file where it cannot (fused experts, checkpoints whose names differ from the modules').
"""

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from lorafit.errors import Problem, UserError
from lorafit.export.own import ColumnUpdate, column_updates, trained_weights
from lorafit.export.tensor_files import Stored, stored_tensors
from lorafit.model.adapters.files import WEIGHTS, method_of
from lorafit.model.adapters.lora import NOT_A_PRODUCT, realised_scale
from lorafit.model.trained import AdapterSource
from lorafit.model.weights import layer_kind


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

    def is_by_rows(self, shape: tuple[int, ...]) -> bool:
        """Whether a row of the merged weight needs that row of A·B and of the weight alone."""
        return (not self.embedding and not self.is_transposed
                and shape == (len(self.b), self.a.shape[1]))

    def of_rows(self, start: int, count: int) -> "Update":
        """What changes some rows of such a weight."""
        magnitude = self.magnitude
        return replace(self, b=self.b[start:start + count], magnitude=None if magnitude is None
                       else magnitude.flatten()[start:start + count])

    def apply(self, weight: torch.Tensor) -> torch.Tensor:
        """The merged weight in float32."""
        a, b = self.a.float(), self.b.float()
        own = (len(b), a.shape[1])
        is_turned = self.embedding or (
            weight.shape == own[::-1] and (self.is_transposed or weight.shape != own))
        if is_turned:
            a, b = b.T, a.T
        merged = weight.to(torch.float32, copy=True).addmm_(b, a, alpha=self.scale)
        if self.magnitude is not None:
            magnitude = self.magnitude.float().flatten()
            inputs = 0 if is_turned else 1
            merged *= (magnitude / merged.norm(dim=inputs)).unsqueeze(inputs)
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
class PlanFacts:
    """What a plan comes to. updated, replaced: numbers of tensors by the kind of their layer.
    added: names. unchanged: the number of the others. size_bytes: of the merged weights."""

    updated: dict[str, int]
    replaced: dict[str, int]
    added: list[str]
    unchanged: int
    untie: bool
    in_memory: str
    size_bytes: int


def facts_of(plan: MergePlan, base: Mapping[str, Stored], size_bytes: int) -> PlanFacts:
    """base: the tensors in its files."""
    changed = plan.updates.keys() | plan.replacements.keys()
    return PlanFacts(dict(Counter(map(layer_kind, plan.updates))),
                     dict(Counter(map(layer_kind, plan.replacements))), sorted(plan.added),
                     len(base.keys() - changed), plan.untie, plan.in_memory, size_bytes)


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
    for key in (*NOT_A_PRODUCT, "alora_invocation_tokens"):
        if source.config.get(key):
            plan.in_memory = f"with {key} the update is not scale·B·A"
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
    _refuse_misfits(source, plan, shards)
    _plan_tied(plan, shards, tied)
    return plan


def _refuse_misfits(source: AdapterSource, plan: MergePlan, shards: dict[str, Path]) -> None:
    """UserError with every tensor that is of another shape than the base's."""
    stored = {name: tensor for file in set(shards.values())
              for name, tensor in stored_tensors(file).items()}
    problems = []
    for name, change in (*plan.updates.items(), *plan.replacements.items()):
        if name not in stored:
            continue
        shape, own = stored[name].shape, tuple[int, ...]()
        if isinstance(change, Update):
            own = (len(change.b), change.a.shape[1])
            fits = change.a.shape[0] == change.b.shape[1] and (
                shape == own[::-1] if change.embedding else shape in (own, own[::-1]))
        elif isinstance(change, torch.Tensor):
            own = tuple(change.shape)
            fits = own == shape
        else:
            continue
        if not fits:
            problems.append(Problem(
                f"{name} is {_times(own)} there and {_times(shape)} in the base",
                str(source.directory), "use the base that it was trained on"))
    if problems:
        raise UserError(problems=problems)


def _times(shape: tuple[int, ...]) -> str:
    return " × ".join(f"{size:,}" for size in shape)


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

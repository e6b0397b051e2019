"""Merging an adapter into its base: planned first, then applied shard by shard, then checked.

The plan (export/merge_plan.py) says for every tensor of the base what becomes of it. Tensors are
read, changed and written one after the other, so memory stays near one tensor and the adapter. What
a plan cannot express is merged in memory by peft, and said so.
"""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from lorafit.errors import UserError, VerificationError
from lorafit.export.delta.files import THIN
from lorafit.export.formats.lora_only import incomplete
from lorafit.export.full_base import on_full_base
from lorafit.export.merge_plan import MergePlan, PlanFacts, Update, facts_of, make_plan
from lorafit.export.onto import (
    FULL,
    REQUANTISED,
    Ways,
    measure_ways,
    refuse_unquantised,
    write_onto_quantised,
)
from lorafit.export.surroundings import write_surroundings
from lorafit.export.tensor_check import AUTO, LOGITS, TENSORS, TensorsAgree, check_tensors
from lorafit.export.tensor_files import (
    Stored,
    row_blocks,
    stored_in,
    stored_tensors,
    written,
)
from lorafit.export.verify import Agreement, compare, using
from lorafit.model.adapters.files import WEIGHTS, load_adapter, method_of
from lorafit.model.base import TORCH_DTYPES, load_base, load_config, local_files
from lorafit.model.device import free_memory_bytes
from lorafit.model.stored import stored_as
from lorafit.model.trained import AdapterSource, full_precision
from lorafit.model.weight_files import INDEX, SINGLE
from lorafit.model.weight_files import weight_shards as weight_shards
from lorafit.recipe.methods import METHODS
from lorafit.recipe.schema import Model
from lorafit.run_dir import committed_directory, refuse_target, write_json

# ‖Δlogits‖ / ‖logits‖ above which a merge counts as failed. Merging rounds every weight once to
# the dtype of the base: a relative error of at most 2⁻⁸ in bfloat16, 2⁻¹¹ in float16.
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 3e-2}
_ELSEWHERE = "choose another directory with --output"
# Libraries, and the logits of the rows that models are compared on.
_BESIDE_BYTES = 1_000_000_000


@dataclass(frozen=True)
class MergeResult:
    """Where the model is, how it was merged, and how well it agrees with base + adapter."""

    directory: Path
    updated: int
    replaced: int
    in_memory: str
    agreement: Agreement | None
    against_quantised: Agreement | None
    tensors: TensorsAgree | None = None
    onto: str = FULL


def merge(source: AdapterSource, output: Path, dtype: str | None = None,
          say: Callable[[str], None] = lambda text: None, *, onto: str = FULL,
          by: str = AUTO) -> MergeResult:
    """Write base + adapter as a model that transformers loads, and check it.

    `dtype` converts the weights; otherwise they stay as they are on disk. `onto`: what an adapter
    of a quantised base is merged onto (export/onto.py). `by`: what is compared, logits or tensors
    (export/tensor_check.py), or what memory allows. VerificationError, and nothing left behind,
    when the merged model is not base + adapter. An adapter that is valid on a quantised base only
    is converted before it goes onto the full one.
    """
    refuse_target(output, _ELSEWHERE)
    with _made_for(source, onto, say) as converted:
        plan = _plan(converted, onto)
        by = _settled(by, plan, converted)
        refuse_target(output, _ELSEWHERE, _size_bytes(plan, converted, dtype))
        result = MergeResult(output, len(plan.updates), len(plan.replacements) + len(plan.added),
                             plan.in_memory, None, None, onto=onto)
        with committed_directory(output) as partial:
            _write(plan, converted, partial, dtype, onto, say)
            if by == TENSORS:
                say("checking every merged tensor against base and adapter")
                return replace(result, tensors=check_tensors(
                    converted, base_directory(converted), partial, plan, output))
            say("checking the merged model against base + adapter")
            agreement, quantised = _verify(converted, source, partial, onto)
            tolerance = _TOLERANCE[_dtype_on_disk(partial)]
            if onto != REQUANTISED and not agreement.relative_rms <= tolerance:
                raise VerificationError(
                    f"{output}: the merged model differs from base + adapter: relative difference "
                    f"{agreement.relative_rms:.2e} (allowed {tolerance:.0e}), top-1 agreement "
                    f"{agreement.top1:.2%}; it was not kept\n    this is a bug worth reporting")
    return replace(result, agreement=agreement, against_quantised=quantised)


def plan_of(source: AdapterSource, dtype: str | None = None, *, onto: str = FULL) -> PlanFacts:
    """What a merge would do, without doing it. UserError for what it would refuse."""
    with _made_for(source, onto, lambda text: None) as converted:
        plan = _plan(converted, onto)
        return facts_of(plan, stored_in(base_directory(converted)),
                        _size_bytes(plan, converted, dtype))


def compare_ways(source: AdapterSource, say: Callable[[str], None] = lambda text: None) -> Ways:
    """What an adapter of a quantised base loses in each way of merging; keeps nothing."""
    def write(onto: str, folder: Path) -> None:
        with _made_for(source, onto, say) as converted:
            _write(_plan(converted, onto), converted, folder, None, onto, lambda text: None)

    return measure_ways(source, write, say)


@contextmanager
def _made_for(source: AdapterSource, onto: str,
              say: Callable[[str], None]) -> Iterator[AdapterSource]:
    """The adapter as it is valid on what it is merged onto. UserError when it cannot be merged."""
    row = METHODS.get(method_of(source.config))
    if row is not None and not row.merges:
        raise UserError(
            f"{method_of(source.config)} cannot be merged: {row.why_not_merged}",
            str(source.directory), "use base and adapter together: lorafit export-adapter")
    if onto != FULL:
        refuse_unquantised(source, f"--onto {onto}")
    for name, tensor in load_file(source.directory / WEIGHTS).items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UserError(f"{name} holds values that are not finite", str(source.directory),
                            "take an earlier checkpoint of the run")
    if onto != FULL:
        yield source
        return
    with on_full_base(source) as converted:
        if converted is not source:
            say("taking off the LoftQ start, which is a mistake on the full-precision base")
        yield converted


def _plan(source: AdapterSource, onto: str) -> MergePlan:
    """UserError for an adapter of another base, and for one that lacks layers."""
    if onto != FULL:
        return MergePlan(in_memory=f"onto the {onto} {source.model.quantization} base")
    base = base_directory(source)
    plan = make_plan(source, base, weight_shards(base))
    if not plan.in_memory and method_of(source.config) in THIN and (problems := incomplete(source)):
        raise UserError(problems=problems)
    return plan


def _size_bytes(plan: MergePlan, source: AdapterSource, dtype: str | None) -> int:
    """About how much is going to be written; less where it is quantised again."""
    wanted = None if dtype is None else TORCH_DTYPES[dtype].itemsize
    added = sum(weight.numel() * (wanted or weight.itemsize) for weight in plan.added.values())
    return added + sum(math.prod(tensor.shape) * (
        wanted if wanted and tensor.dtype.is_floating_point else tensor.dtype.itemsize)
        for tensor in stored_in(base_directory(source)).values())


def _write(plan: MergePlan, source: AdapterSource, folder: Path, dtype: str | None, onto: str,
           say: Callable[[str], None]) -> None:
    base = base_directory(source)
    if plan.in_memory:
        say(f"merging in memory: {plan.in_memory}")
        if onto == FULL:
            _merge_in_memory(source, folder, dtype)
        else:
            write_onto_quantised(source, onto, folder, dtype or _dtype_name(base))
    else:
        _merge_shards(plan, base, weight_shards(base), folder, dtype, say)
        _write_config(plan, base, folder, dtype)
    write_surroundings(source, folder)


def _settled(by: str, plan: MergePlan, source: AdapterSource) -> str:
    """What is compared. UserError for tensors where a plan does not name them."""
    if by == TENSORS and plan.in_memory:
        raise UserError(f"tensors are not compared: {plan.in_memory}", "--check tensors",
                        "use --check logits, which needs the model in memory in float32")
    if by != AUTO:
        return by
    room = free_memory_bytes()
    if plan.in_memory or room is None:
        return LOGITS
    numbers = sum(math.prod(tensor.shape)
                  for tensor in stored_in(base_directory(source)).values())
    return TENSORS if 4 * numbers + _BESIDE_BYTES > room else LOGITS


def base_directory(source: AdapterSource) -> Path:
    """The base's files on this machine, downloaded if it is on the hub."""
    return local_files(source.model, weights=True)[0]


def _merge_shards(plan: MergePlan, folder: Path, shards: dict[str, Path], output: Path,
                  dtype: str | None, say: Callable[[str], None]) -> None:
    """Read, change and write the files a block of rows of one tensor at a time."""
    files = list(dict.fromkeys(shards.values()))
    added_dtype = TORCH_DTYPES[dtype] if dtype else _dtype_on_disk(folder)
    weight_map = {}
    for number, file in enumerate(files, 1):
        say(f"shard {number}/{len(files)}")
        target = SINGLE if len(files) == 1 else file.name
        stored = stored_tensors(file)
        added = plan.added if number == len(files) else {}
        with written(output / target, [*stored, *added]) as writer:
            for name, tensor in stored.items():
                wanted = tensor.dtype
                if dtype is not None and wanted.is_floating_point:
                    wanted = TORCH_DTYPES[dtype]
                shape = plan.replacements.get(name, tensor).shape
                writer.add(name, wanted, tuple(shape),
                           (block.to(wanted) for block in _merged(plan, tensor)))
            for name, weight in added.items():
                writer.add(name, added_dtype, tuple(weight.shape), [weight.to(added_dtype)])
        weight_map.update(dict.fromkeys([*stored, *added], target))
    if len(files) > 1:
        total_bytes = sum(tensor.size_bytes for file in files
                          for tensor in stored_tensors(output / file.name).values())
        write_json(output / INDEX, {"metadata": {"total_size": total_bytes},
                                    "weight_map": weight_map})


def _merged(plan: MergePlan, tensor: Stored) -> Iterator[torch.Tensor]:
    """A tensor as it is to be written, in blocks of rows where they do not depend on each other."""
    if tensor.name in plan.replacements:
        yield plan.replacements[tensor.name]
        return
    update = plan.updates.get(tensor.name)
    if update is None or (isinstance(update, Update) and update.is_by_rows(tensor.shape)):
        for start, count in row_blocks(tensor.shape):
            block = tensor.read(start, count) if tensor.shape else tensor.read()
            yield block if update is None else update.of_rows(start, count).apply(block)
        return
    yield update.apply(tensor.read())


def _write_config(plan: MergePlan, folder: Path, output: Path, dtype: str | None) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    sections = [config, config["text_config"]] if "text_config" in config else [config]
    for section in sections:
        if plan.untie:
            section["tie_word_embeddings"] = False
        if dtype is not None:
            section.pop("torch_dtype", None)
            section["dtype"] = dtype
    write_json(output / "config.json", config)


def _merge_in_memory(source: AdapterSource, output: Path, dtype: str | None) -> None:
    """peft's own merge, for what shards cannot express. Needs memory for the whole model."""
    on_disk = dtype or _dtype_name(base_directory(source))
    base = load_base(full_precision(source.model), on_disk, "eager", torch.device("cpu"))
    merged = load_adapter(base, source.directory).merge_and_unload(safe_merge=True)
    merged.save_pretrained(output)


def _verify(source: AdapterSource, as_trained: AdapterSource, merged: Path,
            onto: str) -> tuple[Agreement, Agreement | None]:
    """Merged against base + adapter, both computed in float32; and, for a quantised run, against
    the quantised base that the adapter was trained on, which is the one comparison of what was
    merged onto that."""
    rows = source.rows()
    device = torch.device("cpu")
    model = full_precision(source.model)
    other = using(lambda: load_base(
        model.model_copy(update={"base": str(merged), "revision": None}), "float32", "eager",
        device), rows)
    if onto != FULL:
        trained = using(lambda: load_adapter(
            load_base(source.model, "float32", "eager", device), source.directory), rows)
        return compare(trained, other), None
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


def _dtype_name(folder: Path) -> str:
    found = _dtype_on_disk(folder)
    return next(name for name, value in TORCH_DTYPES.items() if value == found)


def _dtype_on_disk(folder: Path) -> torch.dtype:
    """The coarsest floating-point dtype among a model's tensors; float32 where there is none."""
    found = {tensor.dtype for tensor in stored_in(folder).values()} & _TOLERANCE.keys()
    return max(found or {torch.float32}, key=lambda dtype: _TOLERANCE[dtype])

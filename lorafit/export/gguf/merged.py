"""Base and adapter as one GGUF: merged in a folder, converted, read back and compared."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from lorafit.errors import VerificationError
from lorafit.export.gguf.convert import WEIGHTS, Converted, prepare, write
from lorafit.export.gguf.library import gguf_library, refuse_unknown_type
from lorafit.export.gguf.reading import read_model
from lorafit.export.merge import MergeResult, merge
from lorafit.export.onto import FULL
from lorafit.export.verify import Agreement, compare, using
from lorafit.model.base import load_base
from lorafit.model.trained import AdapterSource
from lorafit.recipe.schema import Model
from lorafit.run_dir import committed_directory, refuse_target

# Weights are rounded once, when they are merged: the file holds the merged model's own, to the
# order in which a norm's 1 is added. q8_0 rounds to 1/127 of the largest of 32 values.
_TOLERANCE, _TOLERANCE_Q8 = 1e-4, 1e-1
_MERGED_AS = {"f32": "float32", "f16": "float16", "bf16": "bfloat16", "q8_0": "float32", None: None}


@dataclass(frozen=True)
class GgufResult:
    """merged: how base and adapter were merged and agree. agreement: of the file with the merged
    model, both computed by transformers."""

    directory: Path
    merged: MergeResult
    converted: Converted
    size_bytes: int
    agreement: Agreement


def merge_to_gguf(source: AdapterSource, output: Path, kind: str | None,
                  say: Callable[[str], None] = lambda text: None, *,
                  onto: str = FULL) -> GgufResult:
    """Write base + adapter as `output`/model.gguf with a Modelfile, and check it.

    UserError where llama.cpp would not compute the model. VerificationError, and nothing left
    behind, when the file does not hold the merged model.
    """
    refuse_target(output, "choose another directory with --output")
    refuse_unknown_type(kind)
    gguf = gguf_library()
    with committed_directory(output) as partial:
        folder = partial / "merged"
        merged = merge(source, folder, _MERGED_AS[kind], say, onto=onto)
        say("converting to GGUF")
        ready = prepare(folder, kind)
        converted = write(ready, partial, _name(source), say)
        say("checking the file against the merged model")
        rows = source.rows()
        section = Model(base=str(folder), dtype="float32")
        reference = using(lambda: load_base(section, "float32", "eager", torch.device("cpu")), rows)
        agreement = compare(reference, using(
            lambda: read_model(gguf, partial / WEIGHTS, ready.architecture, ready.config), rows))
        limit = _TOLERANCE_Q8 if converted.kind == "q8_0" else _TOLERANCE
        if not agreement.relative_rms <= limit:
            raise VerificationError(
                f"{output}: the GGUF computes other logits than the merged model (relative "
                f"difference {agreement.relative_rms:.2e}, allowed {limit:.0e}); it was not kept\n"
                "    this is a bug worth reporting")
        shutil.rmtree(folder)
        size_bytes = (partial / WEIGHTS).stat().st_size
    return GgufResult(output, merged, converted, size_bytes, agreement)


def _name(source: AdapterSource) -> str:
    """The base's name and the run's."""
    base = Path(source.model.base).name
    return f"{base} {source.run.path.name}" if source.run is not None else base

"""Exporting an adapter in peft's format, checked by loading it with plain peft."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from lorafit.errors import VerificationError
from lorafit.export.verify import Agreement, compare, using
from lorafit.model.adapter import CONFIG, WEIGHTS, load_adapter
from lorafit.model.base import load_base
from lorafit.model.trained import AdapterSource
from lorafit.run_dir import committed_directory, refuse_existing


@dataclass(frozen=True)
class ExportResult:
    """Where the adapter is, its size, and how its logits compare with the run's."""

    directory: Path
    size_bytes: int
    agreement: Agreement


def export_adapter(source: AdapterSource, output: Path) -> ExportResult:
    """Write the adapter with its tokenizer and chat template.

    VerificationError unless plain peft computes the same logits from it, bit for bit, as from the
    adapter of the run.
    """
    refuse_existing(output, "choose another directory with --output")
    with committed_directory(output) as partial:
        for name in (CONFIG, WEIGHTS):
            shutil.copyfile(source.directory / name, partial / name)
        source.tokenizer().save_pretrained(partial)
    agreement = _verify(source, output)
    if not agreement.bit_equal:
        raise VerificationError(
            f"{output}: the exported adapter computes other logits (largest difference "
            f"{agreement.max_difference:.2e})\n    do not use it; this is a bug worth reporting"
        )
    return ExportResult(output, (output / WEIGHTS).stat().st_size, agreement)


def _verify(source: AdapterSource, exported: Path) -> Agreement:
    from peft import PeftModel

    rows = source.rows()
    device = torch.device("cpu")
    dtype = "float32" if source.model.dtype == "auto" else source.model.dtype

    def base() -> object:
        return load_base(source.model, dtype, "eager", device)

    reference = using(lambda: load_adapter(base(), source.directory), rows)
    other = using(lambda: PeftModel.from_pretrained(base(), str(exported)).eval(), rows)
    return compare(reference, other)

"""Exporting an adapter in peft's format, checked by loading it with plain peft."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from lorafit.errors import UserError, VerificationError
from lorafit.export.full_base import FOR_FULL_BASE, remark, write_converted
from lorafit.export.own import write_as_lora
from lorafit.export.verify import Agreement, compare, using
from lorafit.model.adapters.files import (
    CONFIG,
    WEIGHTS,
    check_adapter_files,
    load_adapter,
    method_of,
    only_on,
)
from lorafit.model.adapters.own import METHOD_KEY
from lorafit.model.base import load_base
from lorafit.model.trained import AdapterSource
from lorafit.run_dir import committed_directory, refuse_existing, write_text

# ‖Δlogits‖ / ‖logits‖ of an adapter that was converted, computed in float32: the sums are the same
# numbers added in another order.
_CONVERSION_TOLERANCE = 1e-4


@dataclass(frozen=True)
class ExportResult:
    """Where the adapter is, its size, and how its logits compare with the run's.

    loaded_by: what it was loaded with for the comparison. remark: what else there is to know of
    the format, empty where it is peft's own for the method.
    """

    directory: Path
    size_bytes: int
    agreement: Agreement
    loaded_by: str = "plain peft"
    remark: str = ""


def export_adapter(source: AdapterSource, output: Path) -> ExportResult:
    """Write the adapter with its tokenizer and chat template.

    VerificationError unless plain peft computes the same logits from it, bit for bit, as from the
    adapter of the run. Of lorafit's own methods, paca is converted to LoRA and compared within
    rounding, bottleneck stays lorafit's own form, and full is no adapter: UserError.
    """
    method = method_of(source.config)
    if method == "full":
        raise UserError("full fine-tuning leaves a model, not an adapter", str(source.directory),
                        "write the model: lorafit merge")
    refuse_existing(output, "choose another directory with --output")
    with committed_directory(output) as partial:
        if method == "paca":
            write_as_lora(source, partial)
        else:
            for name in (CONFIG, WEIGHTS):
                shutil.copyfile(source.directory / name, partial / name)
        if stored := only_on(partial):
            (partial / FOR_FULL_BASE).mkdir()
            write_converted(source, partial / FOR_FULL_BASE)
            write_text(partial / "VALID_ON.txt", remark(stored) + "\n")
        source.tokenizer().save_pretrained(partial)
    agreement = _verify(source, output)
    is_equal = agreement.bit_equal or (method == "paca"
                                       and agreement.relative_rms <= _CONVERSION_TOLERANCE)
    if not is_equal:
        raise VerificationError(
            f"{output}: the exported adapter computes other logits (largest difference "
            f"{agreement.max_difference:.2e})\n    do not use it; this is a bug worth reporting"
        )
    return ExportResult(output, (output / WEIGHTS).stat().st_size, agreement,
                        "lorafit" if method == "bottleneck" else "plain peft",
                        _REMARKS.get(method, remark(stored)))


_REMARKS = {
    "paca": "converted: a LoRA adapter at scale 1 whose A picks the trained columns",
    "bottleneck": "lorafit's own form, which only lorafit loads",
}


def _verify(source: AdapterSource, exported: Path) -> Agreement:
    """The exported adapter against the run's, on the base as it was trained on.

    A converted one in float32, so that what is left is the order of sums.
    """
    from peft import PeftModel

    rows = source.rows()
    is_own, was_own = (METHOD_KEY in config
                       for config in (check_adapter_files(exported), source.config))
    dtype = source.model.dtype
    if dtype == "auto" or is_own != was_own:
        dtype = "float32"

    def base() -> object:
        return load_base(source.model, dtype, "eager", torch.device("cpu"))

    def load() -> object:
        if is_own:
            return load_adapter(base(), exported)
        return PeftModel.from_pretrained(base(), str(exported)).eval()

    return compare(using(lambda: load_adapter(base(), source.directory), rows), using(load, rows))

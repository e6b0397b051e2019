"""Exporting an adapter: refused before a byte is written, written, checked, and only then there."""

from dataclasses import dataclass
from pathlib import Path

from lorafit.errors import UserError, VerificationError
from lorafit.export.formats.format import Format
from lorafit.export.formats.peft import PEFT
from lorafit.export.surroundings import write_surroundings
from lorafit.export.verify import Agreement
from lorafit.model.trained import AdapterSource
from lorafit.run_dir import committed_directory, refuse_existing

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


def export_adapter(source: AdapterSource, output: Path, form: Format = PEFT) -> ExportResult:
    """Write the adapter in a format, with its tokenizer, chat template and generation settings.

    UserError with every reason why the format cannot express it. VerificationError, and nothing
    left behind, unless what was written computes the logits of the run's adapter: bit for bit, or
    within rounding where numbers had to be converted.
    """
    refuse_existing(output, "choose another directory with --output")
    if problems := form.refuse(source):
        raise UserError(problems=problems)
    with committed_directory(output) as partial:
        written = form.write(source, partial)
        size_bytes = sum(file.stat().st_size for file in partial.rglob("*") if file.is_file())
        write_surroundings(source, partial)
        agreement, loaded_by = form.check(source, partial)
        if not (agreement.bit_equal or (
                written.converted and agreement.relative_rms <= _CONVERSION_TOLERANCE)):
            raise VerificationError(
                f"{output}: the exported adapter computes other logits (relative difference "
                f"{agreement.relative_rms:.2e}, largest {agreement.max_difference:.2e}); it was "
                "not kept\n    this is a bug worth reporting")
    return ExportResult(output, size_bytes, agreement, loaded_by, written.remark)

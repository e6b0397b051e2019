"""Exporting an adapter: refused before a byte is written, written, checked, and only then there."""

import shlex
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from lorafit.errors import Problem, UserError, VerificationError
from lorafit.export.delta.files import refuse_other_than_lora
from lorafit.export.delta.shrink import ShrinkResult, shrink
from lorafit.export.formats.format import Format
from lorafit.export.formats.lora_only import largest_rank
from lorafit.export.formats.peft import PEFT
from lorafit.export.surroundings import write_surroundings
from lorafit.export.verify import Agreement
from lorafit.model.adapters.files import check_adapter_files
from lorafit.model.trained import AdapterSource
from lorafit.run_dir import committed_directory, refuse_target

# ‖Δlogits‖ / ‖logits‖ of an adapter that was converted, computed in float32: the sums are the same
# numbers added in another order.
_CONVERSION_TOLERANCE = 1e-4


@dataclass(frozen=True)
class ExportResult:
    """Where the adapter is, its size, and how its logits compare with the run's.

    loaded_by: what it was loaded with for the comparison. remark: what else there is to know of
    the format, empty where it is peft's own for the method. command: what loads it, empty where
    nothing stands for all programs. cut: what was lost to a limit of the rank, if there was one.
    """

    directory: Path
    size_bytes: int
    agreement: Agreement
    loaded_by: str = "plain peft"
    remark: str = ""
    command: str = ""
    cut: ShrinkResult | None = None


def export_adapter(source: AdapterSource, output: Path, form: Format = PEFT, *,
                   max_rank: int | None = None,
                   say: Callable[[str], None] = lambda text: None) -> ExportResult:
    """Write the adapter in a format, with its tokenizer, chat template and generation settings.

    UserError with every reason why the format cannot express it. VerificationError, and nothing
    left behind, unless what was written computes the logits of the run's adapter: bit for bit, or
    within rounding where numbers had to be converted. With `max_rank` larger ranks are cut to it
    first (docs/inspect.md); what is written then computes the logits of the adapter that was cut.
    """
    refuse_target(output, "choose another directory with --output")
    problems = [*form.refuse(source), *_too_large(source, form, max_rank)]
    if problems:
        raise UserError(problems=problems)
    with _cut(source, max_rank, say) as (adapter, cut), committed_directory(output) as partial:
        written = form.write(adapter, partial)
        size_bytes = sum(file.stat().st_size for file in partial.rglob("*") if file.is_file())
        write_surroundings(source, partial)
        agreement, loaded_by = form.check(adapter, partial)
        if not (agreement.bit_equal or (
                written.converted and agreement.relative_rms <= _CONVERSION_TOLERANCE)):
            raise VerificationError(
                f"{output}: the exported adapter computes other logits (relative difference "
                f"{agreement.relative_rms:.2e}, largest {agreement.max_difference:.2e}); it was "
                "not kept\n    this is a bug worth reporting")
    return ExportResult(output, size_bytes, agreement, loaded_by, written.remark,
                        written.command.replace("{folder}", shlex.quote(str(output))), cut)


def _too_large(source: AdapterSource, form: Format, max_rank: int | None) -> list[Problem]:
    limit, rank = form.largest_rank, largest_rank(source) if form.largest_rank else 0
    if limit is None or min(rank, max_rank or rank) <= limit:
        return []
    return [Problem(f"rank {rank} is above {limit}, the largest that {form.for_what} takes",
                    str(source.directory),
                    f"cut it, which is measured: --max-rank {limit}; or merge it: lorafit merge")]


@contextmanager
def _cut(source: AdapterSource, max_rank: int | None, say: Callable[[str], None],
         ) -> Iterator[tuple[AdapterSource, ShrinkResult | None]]:
    """The adapter with no rank above `max_rank`, in a temporary folder if it had to be cut."""
    if max_rank is not None:
        refuse_other_than_lora(source, "cut to smaller ranks")
    if max_rank is None or largest_rank(source) <= max_rank:
        yield source, None
        return
    with tempfile.TemporaryDirectory(prefix="lorafit-") as name:
        folder = Path(name) / "cut"
        result = shrink(source, folder, rank=max_rank, say=say)
        yield replace(source, directory=folder, config=check_adapter_files(folder)), result

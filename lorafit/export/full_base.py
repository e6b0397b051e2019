"""Adapters that are valid on a quantised base only, made ready for the full-precision one.

A LoftQ adapter carries what makes up for quantisation. On weights that have lost nothing that is a
mistake, so what it was before training is taken off again: W + s·(B·A − B₀·A₀).
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from lorafit.errors import UserError
from lorafit.model.adapters.files import check_adapter_files, only_on, write_for_full_base
from lorafit.model.trained import AdapterSource
from lorafit.run_dir import damage_if_listed

FOR_FULL_BASE = "full_precision"  # folder of an exported adapter


@contextmanager
def on_full_base(source: AdapterSource) -> Iterator[AdapterSource]:
    """The adapter as it is valid on the full-precision base, in a temporary folder if it has to be
    converted. UserError when its start is not at hand."""
    if not only_on(source.directory):
        yield source
        return
    with tempfile.TemporaryDirectory(prefix="lorafit-") as name:
        folder = Path(name)
        write_converted(source, folder)
        yield replace(source, directory=folder, config=check_adapter_files(folder))


def write_converted(source: AdapterSource, folder: Path) -> None:
    """Write a LoftQ adapter for the full-precision base. UserError without its start."""
    if source.run is None or not source.run.initial_adapter.exists():
        raise UserError(
            f"is valid on the base in {only_on(source.directory)} only: it started from what "
            "quantisation loses (LoftQ), and the start is not beside it", str(source.directory),
            "give the run directory, which holds the start")
    start = source.run.initial_adapter
    if problem := damage_if_listed(start):
        raise UserError(f"the start of the adapter is damaged: {problem}", str(start),
                        "restore it from a copy of the run")
    write_for_full_base(source.directory, source.run.initial_adapter, folder)


def remark(stored: str) -> str:
    """What whoever gets an exported LoftQ adapter has to know; empty for other adapters."""
    if not stored:
        return ""
    return (f"WRONG on the full-precision base: valid on the base in {stored} only, because it "
            f"makes up for what {stored} loses; {FOR_FULL_BASE}/ is the one for the "
            "full-precision base")

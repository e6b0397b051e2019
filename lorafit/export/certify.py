"""The papers of an artifact: its proof, and a model card that repeats what the proof says."""

from dataclasses import asdict
from pathlib import Path

from lorafit.export.adapter import ExportResult
from lorafit.export.bases import BASE, FULL, stored_base, trained_model, with_adapter
from lorafit.export.card import write_card
from lorafit.export.delta.held_out import kept_rows
from lorafit.export.gguf.merged import GgufResult
from lorafit.export.merge import MergeResult
from lorafit.export.onto import FULL as ON_FULL
from lorafit.export.proof import MERGED, MERGED_GGUF, Origin, write_proof
from lorafit.export.tensor_check import TensorsAgree
from lorafit.export.verify import Agreement
from lorafit.model.trained import AdapterSource


def certify_merge(source: AdapterSource, result: MergeResult) -> None:
    """Write the papers of a merged model."""
    _, stored = trained_model(source)
    whole = FULL if result.onto == ON_FULL else stored_base(stored or "")
    label = with_adapter(BASE if stored is None else whole)
    measured = {} if result.agreement is None else {label: result.agreement}
    if stored is not None and result.against_quantised is not None:
        measured[with_adapter(stored_base(stored))] = result.against_quantised
    _certify(source, result.directory, Origin("merge", MERGED), measured,
             tensors=result.tensors)


def certify_gguf(source: AdapterSource, result: GgufResult) -> None:
    """Write the papers of a merged model in GGUF form."""
    _certify(source, result.directory, Origin("merge --format gguf", MERGED_GGUF),
             {"the merged model that it was made of": result.agreement})


def certify_export(source: AdapterSource, result: ExportResult, form: str,
                   command: str = "") -> None:
    """Write the papers of an exported adapter. command: what starts a program with it."""
    _, stored = trained_model(source)
    base = BASE if stored is None else stored_base(stored)
    measured = {with_adapter(base): result.agreement}
    if result.cut is not None:
        measured = {f"{with_adapter(base)} after its ranks were cut": result.agreement,
                    f"{with_adapter(base)} before that": result.cut.agreement}
    _certify(source, result.directory, Origin("export-adapter", form), measured, command)


def _certify(source: AdapterSource, directory: Path, origin: Origin,
             measured: dict[str, Agreement], command: str = "",
             tensors: TensorsAgree | None = None) -> None:
    proof = write_proof(source, directory, origin, kept_rows(source), measured,
                        None if tensors is None else asdict(tensors))
    write_card(source, directory, proof, command)

"""An artifact, loaded anew from its files, against the trainer's own model."""

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lorafit.export import proof as proofs
from lorafit.export.bases import with_adapter
from lorafit.export.delta.held_out import Rows, kept_rows
from lorafit.export.full_base import FOR_FULL_BASE
from lorafit.export.gguf.convert import WEIGHTS as MODEL_GGUF
from lorafit.export.gguf.reading import read_file
from lorafit.model.base import load_base, load_config
from lorafit.model.device import find_device
from lorafit.model.generate import end_tokens
from lorafit.model.trained import AdapterSource, full_precision
from lorafit.recipe.schema import Model
from lorafit.verify import figures
from lorafit.verify.artifact import Artifact, holds_the_trained_tensors
from lorafit.verify.figures import Compared, Figure, Limits, Verification
from lorafit.verify.measure import Spoken, difference, speak
from lorafit.verify.prompting import tokenizer_figure
from lorafit.verify.prompts import prompts_of_rows
from lorafit.verify.references import Reference, references_of

Say = Callable[[str], None]


@dataclass(frozen=True)
class Asked:
    """What to measure on. rows: of the kept held-out rows, all if None. prompts and tokens: how
    many are answered, and how long the answers are at most. tolerance: allowed relative difference
    of the logits in place of the usual limits."""

    rows: int | None = None
    prompts: int = 8
    tokens: int = 32
    tolerance: float | None = None


@dataclass(frozen=True)
class _Pair:
    """A loaded artifact and the references that it is compared with; the label of each, and its
    limits, None where figures are only told."""

    load: Callable[[], Any]
    references: list[tuple[Reference, str, Limits | None]]


def verify_against(artifact: Artifact, source: AdapterSource, asked: Asked,
                   say: Say = lambda text: None) -> Verification:
    """Compare an artifact with base + adapter as they were trained, in float32.

    UserError when it cannot be loaded; VerificationError when it is of another base.
    """
    rows = _first(kept_rows(source), asked.rows)
    remarks = []
    with ExitStack() as stack:
        references, missing = references_of(source, stack)
        remarks += missing
        if artifact.form is not None and artifact.form.load is None:
            compared = [_by_its_check(artifact, source, asked)]
            remarks.append(f"a {artifact.form.name} adapter is compared by the format's own check, "
                           "on the logits of the run's rows")
            answered = ""
        else:
            pairs = _pairs(artifact, source, references, asked)
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lorafit-")))
            prompts = [prompt.ids for prompt in prompts_of_rows(rows, asked.prompts)]
            compared = _measured(pairs, rows, prompts, asked, folder, say)
            answered = f"; {len(prompts)} prompts answered with up to {asked.tokens} tokens"
            if not all(each.passed for each in compared):
                remarks += _no_effect(pairs, references, rows, say)
    compared.append(Compared("the run's way from messages to tokens",
                             [tokenizer_figure(artifact.path, source, rows)], {}))
    compared += _proof_figures(artifact, source, rows, compared)
    is_judged = not artifact.is_quantised or asked.tolerance is not None
    if not is_judged:
        remarks.append("its weights were quantised again, for which no limit is right: say how "
                       "large the relative difference may be (--tolerance 0.2), or see what else "
                       "there is (lorafit merge RUN --compare)")
    found = Verification(
        f"{artifact.path}: {artifact.kind}",
        f"{rows.what}, {sum(len(ids) for ids in rows.ids):,} tokens{answered}",
        compared, remarks, _remedy(artifact, source, asked))
    return found if is_judged else replace(
        found, agrees="was measured; whether it is near enough to what was trained was not judged")


def _pairs(artifact: Artifact, source: AdapterSource, references: list[Reference],
           asked: Asked) -> list[_Pair]:
    """Merged models are compared with every reference, the verdict resting on that whose base they
    were made of. Adapters are put on the base that they were trained on; where that is quantised,
    the full one is measured too, because servers load it."""
    trained, last = references[0], references[-1]
    if artifact.form is None:
        judged = _merged_onto(artifact, references)
        limits = None if artifact.is_quantised else figures.ROUNDED[artifact.stored]
        return [_Pair(lambda: _model(artifact, source.model), [
            (each, with_adapter(each.label),
             _asked_limits(limits, asked) if each is judged else None)
            for each in references])]
    load = artifact.form.load
    assert load is not None
    limits = (figures.EXACT if holds_the_trained_tensors(artifact, source.directory)
              else figures.CONVERTED)
    pairs = [_Pair(lambda: load(trained.base(), artifact.path),
                   [(trained, with_adapter(trained.label), _asked_limits(limits, asked))])]
    if last is not trained:
        for_full = artifact.path / FOR_FULL_BASE
        folder = for_full if for_full.is_dir() else artifact.path
        pairs.append(_Pair(lambda: load(last.base(), folder), [
            (trained, f"{with_adapter(trained.label)}, when the artifact is put on {last.label}, "
             "as servers do", None)]))
    return pairs


def _merged_onto(artifact: Artifact, references: list[Reference]) -> Reference:
    """The reference that a merged model was checked against when it was made: its proof names that
    first. The full-precision base's where there is no proof."""
    measured = artifact.proof["measured"] if artifact.proof is not None else {}
    return next((each for label in measured for each in references
                 if with_adapter(each.label) == label), references[-1])


def _measured(pairs: list[_Pair], rows: Rows, prompts: list[list[int]], asked: Asked,
              folder: Path, say: Say) -> list[Compared]:
    spoken: dict[str, Spoken] = {}
    ends: list[int] = []
    for reference in {r.label: r for pair in pairs for r, _, _ in pair.references}.values():
        say(f"the trainer's model: {reference.label}")
        model = reference.adapted()
        ends = ends or end_tokens(model, reference.tokenizer)
        spoken[reference.label] = speak(model, rows, prompts, asked.tokens, ends,
                                        folder / str(len(spoken)))
        del model
        _free()
    found = []
    for pair in pairs:
        say("the artifact, loaded from its files")
        model = pair.load()
        differences = difference([spoken[r.label] for r, _, _ in pair.references], model, rows,
                                 prompts, asked.tokens, ends)
        del model
        _free()
        found += [Compared(label, figures.difference_figures(each, limits),
                           figures.facts_of(each))
                  for each, (_, label, limits) in zip(differences, pair.references, strict=True)]
    return found


def _by_its_check(artifact: Artifact, source: AdapterSource, asked: Asked) -> Compared:
    assert artifact.form is not None
    agreement, loaded_by = artifact.form.check(source, artifact.path)
    limits = _asked_limits(figures.CONVERTED, asked)
    top1 = Figure("most likely token (top-1)",
                  f"{agreement.top1:.2%} of {agreement.positions:,} equal")
    return Compared(f"base with the run's adapter; the artifact by {loaded_by}",
                    [*figures.agreement_figures(agreement, limits), top1],
                    figures.facts_of(agreement))


def _no_effect(pairs: list[_Pair], references: list[Reference], rows: Rows,
               say: Say) -> list[str]:
    """Whether what failed computes what the base alone computes: the commonest mistake."""
    say("the base alone, because the artifact differs")
    reference = references[-1] if len(pairs[0].references) > 1 else references[0]
    with tempfile.TemporaryDirectory(prefix="lorafit-") as name:
        base = speak(reference.base(), rows, [], 1, [], Path(name) / "base")
        _free()
        model = pairs[0].load()
        found = difference([base], model, rows, [], 1, [])[0].agreement
    del model
    _free()
    if found.relative_rms > figures.ROUNDED["bfloat16"].relative:
        return []
    return [f"{figures.NO_EFFECT}: the artifact computes what the base computes without an adapter "
            f"(relative difference {found.relative_rms:.1e})"]


def _proof_figures(artifact: Artifact, source: AdapterSource, rows: Rows,
                   compared: list[Compared]) -> list[Compared]:
    """The artifact's proof held against its files, the run, and what was measured now."""
    proof = artifact.proof
    if proof is None:
        return []
    found = proofs.changes(artifact.path, proof)
    told = [Figure("files", "; ".join(found) or f"{len(proof['files'])} as the proof has them",
                   "unchanged", not found)]
    same = proof["trained_adapter"] == proofs.adapter_hashes(source)
    told.append(Figure("the run's adapter", "the one that the proof names" if same else
                       "another than the proof names", "the same", same))
    difference = proofs.other_base(proof["base"], proofs.base_identity(source.model))
    told.append(Figure("base", "not on this machine, not checked") if difference is None else
                Figure("base", f"{proof['base']['name']}, {difference or 'the same'}", "the same",
                       not difference))
    if proof["rows"]["sha256"] == proofs.rows_identity(rows)["sha256"]:
        for each in [each for each in compared if "relative_rms" in each.facts]:
            stored = proof["measured"].get(each.against)
            if stored is not None:
                then, today = float(stored["relative_rms"]), float(each.facts["relative_rms"])
                told.append(Figure(
                    "relative difference, measured again", f"{today:.2e}, {then:.2e} in the proof",
                    "within a tenth", abs(today - then) <= 0.1 * then + 1e-5))
    return [Compared(f"{proofs.PROOF} ({proof['made_by']}, {proof['date']})", told, {})]


def record(artifact: Artifact, source: AdapterSource, asked: Asked, found: Verification) -> None:
    """Keep what was measured in the artifact's proof; write one where there is none."""
    rows = _first(kept_rows(source), asked.rows)
    measured = {each.against: each.facts for each in found.compared
                if "relative_rms" in each.facts}
    form = (artifact.form.name if artifact.form is not None else
            proofs.MERGED_GGUF if artifact.is_gguf else proofs.MERGED)
    if artifact.proof is None:
        proofs.write_proof(source, artifact.path, proofs.Origin("verify", form), rows, measured)
        return
    proofs.add_verification(artifact.path, artifact.proof, rows, measured)


def _remedy(artifact: Artifact, source: AdapterSource, asked: Asked) -> str:
    if asked.tolerance is not None:
        return "it differs by more than --tolerance allows"
    if artifact.form is not None and not holds_the_trained_tensors(artifact, source.directory):
        return ("its tensors are not the run's own; if it was shrunk or combined on purpose, say "
                "how large the relative difference may be: --tolerance 0.1")
    return "do not use it; export it again"


def _asked_limits(limits: Limits | None, asked: Asked) -> Limits | None:
    return limits if asked.tolerance is None else figures.tolerating(asked.tolerance)


def _first(rows: Rows, count: int | None) -> Rows:
    if count is None or count >= len(rows.ids):
        return rows
    what = f"the first {count} of {rows.what}"
    return replace(rows, what=what, ids=rows.ids[:count], supervised=rows.supervised[:count])


def _model(artifact: Artifact, like: Model) -> Any:
    """A merged model, by transformers alone; a GGUF by llama.cpp's rules, as a model of the base's
    configuration."""
    if artifact.is_gguf:
        return read_file(artifact.path / MODEL_GGUF, load_config(full_precision(like)))
    section = Model(base=str(artifact.path.absolute()), trust_remote_code=like.trust_remote_code)
    return load_base(section, "float32", "eager", find_device()[0])


def _free() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


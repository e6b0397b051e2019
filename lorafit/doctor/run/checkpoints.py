"""Checkpoints: digests, and what digests do not say."""

import hashlib
import json
import math
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from lorafit.doctor.finding import Finding, Section, Verdict, size
from lorafit.doctor.run.adapter import CONFIG, WEIGHTS, wrong_with_adapter, wrong_with_file
from lorafit.doctor.run.seen import Seen, settled, size_of
from lorafit.doctor.run.tensors import Stored, scalars
from lorafit.run_dir import MANIFEST, RunDir, damage

# As train/checkpoint.py names them (tests hold them together); that module loads torch.
OPTIMIZER, STATE = "optimizer.safetensors", "state.json"


def examine_checkpoints(run: RunDir, seen: Seen) -> Iterator[Finding]:
    """A line for each, oldest first, and one for the file that names the newest."""
    section = Section("checkpoints")
    found = run.list_checkpoints()
    for path in found:
        said = settled(section, path, partial(_examine, section, path, seen), was_listed=True)
        if any(each.verdict is Verdict.PROBLEM for each in said):
            seen.damaged.append(path.name)
        yield from said
    if found:
        yield from settled(section, run.checkpoints / "latest",
                           lambda: list(_latest(section, run, seen)))
    elif not seen.is_running:
        yield section.note("none", "there is none")


def _examine(section: Section, path: Path, seen: Seen) -> list[Finding]:
    step = int(path.name.removeprefix("step-")) if path.name[5:].isdecimal() else -1
    seen.steps.pop(step, None)
    problem = damage(path)
    wrong = [problem] if problem is not None else []
    wrong += _not_listed(path) if problem is None else []
    if not wrong:  # what digests vouch for may have been wrong when it was written
        progress, against = _state(path, step)
        wrong += wrong_with_adapter(path) + against
        others = [file for file in sorted(path.glob("*.safetensors"))
                  if file.name not in (WEIGHTS, OPTIMIZER)]
        for file in others:
            wrong += wrong_with_file(file)[1]
        if not wrong:
            seen.steps[step] = progress
            text = f"{size(size_of(path))}, every file and number is in order"
            if (loss := progress.get("last_eval_loss")) is not None:
                text += f"; held-out loss {loss:.4f}"
            return [section.ok(path.name, text)]
    return [section.problem(path.name, "; ".join(wrong),
                            "--resume leaves it out and takes the newest that is intact")]


def _not_listed(path: Path) -> list[str]:
    """Files that are needed and that no digest is kept of."""
    known = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    return [f"{MANIFEST} does not know {name}" for name in (WEIGHTS, CONFIG, OPTIMIZER, STATE)
            if name not in known]


def _state(path: Path, step: int) -> tuple[dict[str, Any], list[str]]:
    """The progress that was saved, and what speaks against it or the optimizer's state."""
    try:
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
        progress, plain = dict(state["progress"]), state["optimizer"]
        at = int(progress["step"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        return {}, [f"{STATE} cannot be read: {error}"]
    wrong = []
    if at != step:
        wrong.append(f"{STATE} is of step {at}")
    for name, value in progress.items():
        if isinstance(value, float) and not math.isfinite(value):
            wrong.append(f"{STATE}: {name} is {value}")
    tensors, against = wrong_with_file(path / OPTIMIZER)
    wrong += against
    if tensors is not None:
        wrong += _optimizer(path / OPTIMIZER, tensors, plain, at)
    return progress, wrong


def _optimizer(file: Path, tensors: dict[str, Stored], plain: Any, step: int) -> list[str]:
    """Whether the tensors are those that the state's outline names, of shapes that go together."""
    named = set(_names(plain))
    if odd := sorted(named ^ tensors.keys()):
        where = "not there" if odd[0] in named else f"not in {STATE}"
        return [f"{OPTIMIZER}: {odd[0]} is {where}"]
    wrong = []
    for name, tensor in tensors.items():
        # AdamW keeps two moments of a weight's shape, in 8 bits under other names.
        other = tensors.get(re.sub(r"/exp_avg$", "/exp_avg_sq", name))
        if other is not None and other.shape != tensor.shape:
            wrong.append(f"{OPTIMIZER}: {name} is {list(tensor.shape)} and the other moment "
                         f"{list(other.shape)}")
    for name, value in scalars(file, tensors).items():
        if name.endswith("/step") and not 0 <= value <= step:
            wrong.append(f"{OPTIMIZER}: {name} is {value:g} in a checkpoint of step {step}")
    return wrong[:3]


def _names(plain: Any) -> Iterator[str]:
    if not isinstance(plain, dict) or len(plain) != 1:
        return
    ((kind, value),) = plain.items()
    if kind == "tensor":
        yield str(value)
    elif kind == "dict":
        for _, item in value:
            yield from _names(item)
    elif kind in ("list", "tuple"):
        for item in value:
            yield from _names(item)


def _latest(section: Section, run: RunDir, seen: Seen) -> Iterator[Finding]:
    """The file with the name of the newest and the digest of its manifest."""
    file = run.checkpoints / "latest"
    if not file.exists():
        return
    remedy = "--resume goes by what is intact, and writes it anew"
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        yield section.problem("latest", f"cannot be read: {error}", remedy)
        return
    match = re.fullmatch(r"(step-\d+) ([0-9a-f]{64})\n", text)
    if match is None:
        yield section.problem("latest", "is damaged", remedy)
        return
    name, digest = match.groups()
    manifest = run.checkpoints / name / MANIFEST
    if not manifest.exists():
        # Killed between the two renames of a checkpoint that is written again: it comes back.
        returns = (run.checkpoints / f".{name}.replaced").exists()
        if name not in seen.damaged and not returns:
            yield section.problem("latest", f"names {name}, which is not there", remedy)
    elif hashlib.sha256(manifest.read_bytes()).hexdigest() != digest and name not in seen.damaged:
        yield section.problem("latest", f"names another {name} than there is", remedy)

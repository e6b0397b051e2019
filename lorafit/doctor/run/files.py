"""What a run begins with, what it writes down step by step, and what it ends with."""

import json
import math
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from lorafit import __version__
from lorafit.doctor.finding import Finding, Section, Verdict, size
from lorafit.doctor.run.adapter import CONFIG, WEIGHTS, wrong_with_adapter
from lorafit.doctor.run.seen import Seen, read_object, settled, size_of
from lorafit.errors import UserError
from lorafit.run_dir import RunDir, sha256

_ANEW = "--resume writes it anew"


def examine_beginning(run: RunDir, seen: Seen) -> Iterator[Finding]:
    """recipe.yaml and record.json, the versions then and now, and what a resumed run reads."""
    section = Section("run")
    yield _recipe(section, run, seen)
    yield from settled(section, run.record, lambda: [_record(section, run, seen)])
    if seen.record is not None:
        yield from _versions(section, seen)
    if (run.path / "memory.json").exists():
        yield from settled(section, run.path / "memory.json",
                           lambda: [_json(section, run.path / "memory.json", _ANEW)])


def examine_logs(run: RunDir, seen: Seen) -> Iterator[Finding]:
    """Every line of what was written down: JSON, in order, finite."""
    section = Section("logs")
    yield from settled(section, run.metrics, lambda: list(_metrics(section, run, seen)))
    if run.samples.exists():
        yield from settled(section, run.samples, lambda: [_lines_only(section, run.samples)])
    yield from settled(section, run.held_out, lambda: [_held_out(section, run)])


def examine_result(run: RunDir, seen: Seen) -> Iterator[Finding]:
    """result.json, and the adapter beside the checkpoint that it was kept from."""
    section = Section("result")
    if run.result.exists():
        yield from settled(section, run.result, lambda: [_result(section, run, seen)])
    if run.adapter.exists():
        said = settled(section, run.adapter, lambda: [_adapter(section, run, seen)])
        seen.spoilt = any(each.verdict is Verdict.PROBLEM for each in said)
        yield from said
    elif run.result.exists():
        seen.spoilt = True
        yield section.problem("adapter", "is missing, and result.json says that it is there",
                              _resume_if_kept(seen))
    if run.initial_adapter.exists():
        wrong = wrong_with_adapter(run.initial_adapter)
        if wrong:
            seen.needs.append("initial_adapter")
            yield section.problem("initial_adapter", "; ".join(wrong), "restore it from a copy: a "
                                  "run that goes on starts from it")
        else:
            yield section.ok("initial_adapter", size(size_of(run.initial_adapter)))
    for file in (run.evaluation, *sorted(run.evaluations.glob("*.json"))):
        if file.exists():
            found = _json(section, file, "lorafit eval measures again")
            if found.remedy:
                yield found


def _recipe(section: Section, run: RunDir, seen: Seen) -> Finding:
    from lorafit.recipe.loading import load_recipe

    try:
        seen.recipe = load_recipe(run.recipe)
    except UserError as error:
        seen.needs.append("recipe.yaml")
        first = error.problems[0]
        return section.problem("recipe.yaml", f"cannot be used by lorafit {__version__}: "
                               f"{first.what} ({first.where})", "restore it from a copy, or use "
                               "the version that record.json names")
    return section.ok("recipe.yaml", f"read by lorafit {__version__}: {seen.recipe.adapter.method} "
                      f"on {seen.recipe.model.base}")


def _record(section: Section, run: RunDir, seen: Seen) -> Finding:
    if not run.record.exists() and (seen.is_running or not run.metrics.exists()):
        return section.note("record.json", "not written yet")
    found = _json(section, run.record, _ANEW)
    if not found.remedy:
        seen.record = read_object(run.record)
    return found


def _versions(section: Section, seen: Seen) -> Iterator[Finding]:
    """Bit for bit needs the same versions."""
    assert seen.record is not None
    then = seen.record.get("versions")
    if not isinstance(then, dict):
        return
    differ = []
    for name, version in then.items():
        if name == "python":
            continue
        try:
            now = __version__ if name == "lorafit" else metadata.version(name)
        except metadata.PackageNotFoundError:
            now = "not installed"
        if now != version:
            differ.append(f"{name} {version} then, {now} now")
    if differ:
        yield section.note("versions", "; ".join(differ) + ": a resumed run is the same to "
                           "rounding only")


def _json(section: Section, path: Path, remedy: str) -> Finding:
    try:
        read_object(path)
    except FileNotFoundError:
        return section.problem(path.name, "is missing", remedy)
    except (OSError, ValueError) as error:
        return section.problem(path.name, f"is damaged: {error}", remedy)
    return section.ok(path.name, size(path.stat().st_size))


def _lines(path: Path) -> tuple[list[dict[str, Any]], list[str], bool]:
    """The values of a file of JSON lines, what is wrong with it, and whether its last line has no
    end."""
    text = path.read_text(encoding="utf-8", errors="replace")
    *whole, rest = text.split("\n")
    values, wrong = [], []
    for number, line in enumerate(whole, start=1):
        try:
            value = json.loads(line)
            if not isinstance(value, dict):
                raise ValueError("no object")
            values.append(value)
        except (ValueError, RecursionError):
            wrong.append(f"line {number} is no JSON object")
    return values, wrong, bool(rest)


def _cut(is_cut: bool, seen: Seen) -> str:
    if not is_cut:
        return ""
    return "; its last line is being written" if seen.is_running else \
        "; its last line was cut off by a crash, and is left out by who reads it"


def _metrics(section: Section, run: RunDir, seen: Seen) -> Iterator[Finding]:
    name = run.metrics.name
    if not run.metrics.exists():
        if seen.steps or seen.result is not None:
            yield section.problem(name, "is missing", "what was logged is lost; training does not "
                                  "need it")
        return
    values, wrong, is_cut = _lines(run.metrics)
    steps = [value["step"] for value in values if "loss" in value or "skipped" in value]
    wrong += _order(steps)
    for value in values:
        bad = [key for key, number in value.items()
               if isinstance(number, float) and not math.isfinite(number)]
        if bad:
            wrong.append(f"{bad[0]} of step {value.get('step')} is {value[bad[0]]}")
    seen.last_logged_step = max((step for step in steps if isinstance(step, int)), default=0)
    committed = max([*seen.steps, 0])
    if not wrong and seen.last_logged_step < committed:
        wrong.append(f"ends with step {seen.last_logged_step}, and there is a checkpoint of step "
                     f"{committed}")
    if wrong:
        yield section.problem(name, "; ".join(wrong[:3]) + (
            f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""),
            "training does not need it; what reads it may stop at it")
        return
    evaluations = sum("held_out_loss" in value for value in values)
    yield section.ok(name, f"{len(steps):,} steps, {evaluations:,} evaluations{_cut(is_cut, seen)}")


def _order(steps: list[Any]) -> list[str]:
    wrong = []
    expected = 1
    for step in steps:
        if not isinstance(step, int) or isinstance(step, bool):
            return [f"{step!r} is no step"]
        if step > expected:
            wrong.append(f"steps {expected} to {step - 1} are missing" if step - expected > 1
                         else f"step {expected} is missing")
        elif step < expected:
            wrong.append(f"step {step} comes after step {expected - 1}" if step < expected - 1
                         else f"step {step} is there twice")
        expected = max(expected, step + 1)
    return wrong


def _lines_only(section: Section, path: Path) -> Finding:
    values, wrong, _ = _lines(path)
    if wrong:
        return section.problem(path.name, "; ".join(wrong[:3]), "training does not need it")
    return section.ok(path.name, f"{len(values):,} lines")


def _held_out(section: Section, run: RunDir) -> Finding:
    name = run.held_out.name
    remedy = "restore it from a copy: merge, export and verify compare on it"
    if not run.held_out.exists():
        return section.problem(name, "is missing", remedy)
    values, wrong, is_cut = _lines(run.held_out)
    if is_cut:
        wrong.append("its last line is cut off")
    for number, value in enumerate(values, start=1):
        ids, supervised = value.get("token_ids"), value.get("supervised")
        if not (isinstance(ids, list) and isinstance(supervised, list)
                and len(ids) == len(supervised)
                and all(isinstance(i, int) and i >= 0 for i in ids)):
            wrong.append(f"line {number} is no row of tokens")
    if wrong or not values:
        return section.problem(name, "; ".join(wrong[:3]) or "is empty", remedy)
    return section.ok(name, f"{len(values):,} rows, {sum(len(v['token_ids']) for v in values):,} "
                      "tokens")


def _result(section: Section, run: RunDir, seen: Seen) -> Finding:
    found = _json(section, run.result, _ANEW)
    if found.remedy:
        return found
    result = read_object(run.result)
    try:
        kept, step = int(result["kept_step"]), int(result["progress"]["step"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return section.problem(run.result.name, "does not say which step was kept", _ANEW)
    seen.result = result
    if seen.last_logged_step and step != seen.last_logged_step:
        return section.problem(run.result.name, f"ends with step {step}, and {run.metrics.name} "
                               f"with step {seen.last_logged_step}", _ANEW)
    return section.ok(run.result.name, f"finished after step {step}; weights of step {kept}")


def _adapter(section: Section, run: RunDir, seen: Seen) -> Finding:
    name, remedy = "adapter", _resume_if_kept(seen)
    wrong = wrong_with_adapter(run.adapter)
    if wrong:
        return section.problem(name, "; ".join(wrong), remedy)
    text = size(size_of(run.adapter))
    kept = None if seen.result is None else int(seen.result["kept_step"])
    if kept is None:
        if seen.is_running:
            return section.note(name, f"{text}, of an earlier end of this run")
        return section.note(name, f"{text}, without a result.json: the run was stopped before its "
                            "end, or went on")
    if kept not in seen.steps:
        return section.note(name, f"{text}, every number is finite; its checkpoint of step {kept} "
                            "is not there (intact), so it cannot be compared")
    checkpoint = run.checkpoint(kept)
    for file in (WEIGHTS, CONFIG):
        if sha256(run.adapter / file) != sha256(checkpoint / file):
            return section.problem(name, f"{file} is not that of {checkpoint.name}, which was kept",
                                   remedy)
    return section.ok(name, f"{text}, the same bytes as {checkpoint.name}")


def _resume_if_kept(seen: Seen) -> str:
    if seen.steps:
        return "--resume on a finished run trains no step and writes the result again"
    return "restore it from a copy, or train again"

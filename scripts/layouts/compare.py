"""A cell of the table: a recipe trained in a layout, beside the same on one process."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reliability.processes import forks

from layouts.cases import OTHER_MASKS, REFUSED, Feature, Layout, Leg, make_base
from layouts.cut import cut_back

STEPS = 6
LEARNING_RATE = 1e-4
LIMIT_S = 300.0
ROWS = 48


@dataclass(frozen=True)
class Cell:
    """weights, losses: the largest differences from one process, of a trained weight and of a
    step's or the held-out rows' mean loss. moved: how far training moved a weight, at most.
    instead: what was expected in place of the same weights, and came. problem: why there is nothing
    to compare, or what is too far off."""

    weights: float = 0.0
    losses: float = 0.0
    moved: float = 0.0
    problem: str | None = None
    instead: str = ""


@dataclass(frozen=True)
class Trained:
    """A finished run: weights by name, and losses in the order of the log."""

    weights: dict[str, Any]
    losses: list[float]


class Bench:
    """Runs of one feature, in a folder."""

    def __init__(self, feature: Feature, folder: Path) -> None:
        self.feature, self.folder = feature, folder
        self.folder.mkdir(parents=True, exist_ok=True)
        write_rows(self.folder)
        recipe: dict[str, Any] = {
            "model": {"base": make_base(feature.base, folder.parent), "dtype": "float32"},
            "adapter": {"rank": 4, "alpha": 8},
            "data": {"train": "train.jsonl", "eval": "eval.jsonl", "workers": 1,
                     "date": "2026-01-31", "max_length_tokens": 96},
            "training": {"steps": STEPS, "batch_size": 8, "micro_batch_size": 2,
                         "learning_rate": LEARNING_RATE, "eval_every": 3, "checkpoint_every": 2,
                         "keep_checkpoints": STEPS, "keep": "last"},
            "output": {"dir": "runs"},
        }
        for section, values in feature.changes.items():
            recipe[section] = {**recipe.get(section, {}), **values}
        for key in ("train", "eval"):
            recipe["data"][key] = str(folder / recipe["data"][key])
        self.recipe = folder / "recipe.yaml"
        self.recipe.write_text(json.dumps(recipe, indent=1), encoding="utf-8")
        self.alone: Trained | None = None
        self.start: dict[str, Any] = {}

    def cell(self, layout: Layout, limit: float, losses_limit: float) -> Cell:
        """Train in a layout, and compare."""
        try:
            if self.alone is None:
                run = self._run("alone", Layout("alone", (Leg(1),)))
                self.alone, self.start = _trained(run), _weights(run / "checkpoints/step-00000000")
            run = self._run(layout.name.replace(" ", "-").replace(",", ""), layout)
        except RunFailed as failed:
            if layout.instead(self.feature) == REFUSED and failed.code == 2:
                return Cell(instead=REFUSED)
            return Cell(problem=str(failed))
        if layout.instead(self.feature) == REFUSED:
            return Cell(problem="was not refused")
        found = _trained(run)
        shutil.rmtree(run)
        if found.weights.keys() != self.alone.weights.keys() \
                or len(found.losses) != len(self.alone.losses):
            return Cell(problem="other weights or another number of losses than one process")
        weights = _largest(found.weights, self.alone.weights)
        losses = max(abs(a - b) for a, b in zip(found.losses, self.alone.losses, strict=True))
        moved = _largest(self.alone.weights, self.start)
        if layout.instead(self.feature) == OTHER_MASKS:
            problem = None if weights > limit else "the same, in spite of other masks"
            return Cell(weights, losses, moved, problem, OTHER_MASKS)
        problem = None
        if not (weights <= limit and losses <= losses_limit):
            problem = "too far off"
        elif not moved > 100 * limit:
            problem = f"training moved no weight further than {moved:.1e}"
        return Cell(weights, losses, moved, problem)

    def _run(self, name: str, layout: Layout) -> Path:
        run = self.folder / name
        shutil.rmtree(run, ignore_errors=True)
        for number, leg in enumerate(layout.legs):
            self._train(run, f"{name}-{number}", leg)
            if leg.until is not None:
                cut_back(run, leg.until)
        return run

    def _train(self, run: Path, name: str, leg: Leg) -> None:
        spread = ["--num-processes", str(leg.processes)] if leg.processes > 1 else []
        process = forks().start(
            ["lorafit", "train", str(self.recipe), "--set", f"output.dir={run}", "--auto-resume",
             *spread, *leg.options], self.folder, name,
            environment={"LORAFIT_CACHE": str(self.folder / "cache")},
            ranks=leg.processes if leg.processes > 1 else 0)
        try:
            code = process.wait(LIMIT_S)
        except TimeoutError as error:
            raise RunFailed(str(error)) from None
        if code:
            raise RunFailed(f"exit code {code}: {process.said()[-1500:]}", code)


class RunFailed(Exception):
    """A run did not end as it should. The text says what it said."""

    def __init__(self, said: str, code: int | None = None) -> None:
        super().__init__(said)
        self.code = code


def write_rows(folder: Path) -> None:
    """Chat rows of three to ninety tokens, some with weights on messages."""
    def row(n: int, weighted: bool) -> str:
        answer: dict[str, Any] = {"role": "assistant",
                                  "content": f"It is {2 * n + 1}." + " Yes, indeed." * (n % 7)}
        if weighted:
            answer["weight"] = (0.5, 1.0, 2.0)[n % 3]
        return json.dumps({"messages": [
            {"role": "user", "content": f"How much is {n} and {n + 1}?" + " Please." * (n % 5)},
            answer]}) + "\n"

    for name, first, count, weighted in (("train", 0, ROWS, False), ("eval", 1000, 7, False),
                                         ("weighted", 0, ROWS, True)):
        (folder / f"{name}.jsonl").write_text(
            "".join(row(n, weighted) for n in range(first, first + count)), encoding="utf-8")


def _trained(run: Path) -> Trained:
    lines = [json.loads(line) for line in
             (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    losses = [line[key] for line in lines for key in ("loss", "held_out_loss") if key in line]
    return Trained(_weights(run / "adapter"), losses)


def _weights(directory: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return {name: tensor for file in sorted(directory.glob("*.safetensors"))
            if file.name != "optimizer.safetensors"
            for name, tensor in load_file(file).items()}


def _largest(a: dict[str, Any], b: dict[str, Any]) -> float:
    return max(float((a[name] - b[name]).abs().max()) for name in a if name in b)

"""What LoRA loses against full fine-tuning on this model, this data and this budget.

Arms are full fine-tuning and LoRA at several ranks. Each arm searches its own learning rate on one
seed: a log grid around the rule's rate (`rates.py`), then the rate that the parabola through the
three lowest gives. The two best of these are trained with the other seeds too, since one seed may
stand near a cliff that another falls from, and the lower mean is the arm's. What runs next is a
function of what is known, so a study that was killed goes on where it was.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from lorafit.errors import UserError
from lorafit.recipe import auto
from lorafit.recipe.loading import override
from lorafit.recipe.schema import Recipe
from lorafit.study import rates
from lorafit.study.folder import StudyDir, Trial
from lorafit.study.noise import Difference, Spread, paired, spread
from lorafit.study.outcome import Outcome
from lorafit.study.runs import Runner

FULL = "full"
_NO_EVALUATION = 10**9  # steps: the last one is always evaluated


@dataclass(frozen=True)
class Arm:
    """A way of training, and what is known of it. recipe: at any rate and seed. rank: None of full
    fine-tuning. centre: the rate that the search starts from, and why."""

    name: str
    rank: int | None
    recipe: Recipe
    centre: float
    reason: str


@dataclass(frozen=True)
class Asked:
    """What `lorafit regret` was asked for. folder: where it is done."""

    folder: StudyDir
    recipe: Recipe
    arms: Sequence[Arm]
    seeds: int

    @property
    def fewest_runs(self) -> int:
        """Three rates, and the other seeds of two."""
        return len(self.arms) * (3 + 2 * (self.seeds - 1))


@dataclass(frozen=True)
class Tried:
    """One rate of an arm on the first seed. loss: None where it diverged."""

    learning_rate: float
    loss: float | None


@dataclass(frozen=True)
class ArmResult:
    """One row of the table. tried: on the first seed. candidates: rates that all seeds were trained
    at, as far as they did not diverge; learning_rate is the one of them with the lowest mean, and
    losses (by seed), loss and difference are of it. is_bounded: whether worse rates were tried on
    both sides. missing: what is, if anything."""

    name: str
    rank: int | None
    tried: list[Tried]
    learning_rate: float | None = None
    is_bounded: bool = False
    candidates: list[tuple[float, Spread]] = field(default_factory=list)
    losses: dict[int, float] = field(default_factory=dict)
    loss: Spread | None = None
    difference: Difference | None = None
    trained_parameters: int | None = None
    step_s: float | None = None
    peak_memory_bytes: int | None = None
    missing: str = ""


@dataclass(frozen=True)
class Regret:
    """The whole result. steps and supervised_tokens: of every run alike (of the first seed)."""

    directory: str
    base: str
    arms: list[ArmResult]
    steps: int
    supervised_tokens: int
    start_loss: float | None
    seeds: list[int]
    runs: int
    run_seconds: float
    is_complete: bool
    sentence: str
    remarks: list[str]


def arms_of(recipe: Recipe, path: Any, ranks: Sequence[int], rule: Mapping[str, Any]) -> list[Arm]:
    """Full fine-tuning and LoRA at each rank, all of them validated.

    rule: model_type and hidden_size of the base, for the rule of `auto.learning_rate`. UserError
    where full fine-tuning or a rank is not possible with the recipe.
    """
    if recipe.model.quantization != "none":
        raise UserError(f"model.quantization is {recipe.model.quantization}, and full fine-tuning "
                        "trains the stored weights themselves, which 4 and 8 bits do not hold",
                        str(path), "compare on the unquantised base: --set "
                        "model.quantization=none")
    adapter = recipe.adapter
    if adapter.method != FULL and "rank" not in adapter.row.fields:
        raise UserError(f"adapter.method {adapter.method} has no rank to compare at", str(path),
                        "use --set adapter.method=lora")
    if adapter.rank_pattern:
        raise UserError("adapter.rank_pattern gives layers ranks of their own, so --ranks would "
                        "not say what is trained", str(path), "leave it out of the recipe")
    common = ["training.keep=last", "training.early_stopping=null", "training.sample_prompts=[]",
              f"training.eval_every={_NO_EVALUATION}", "training.keep_checkpoints=1"]
    arms = [_arm(FULL, None, override(recipe, [*common, "training.lora_plus_ratio=1",
                                               "adapter={method: full}"], path), recipe, rule)]
    for rank in ranks:
        change = [f"adapter.rank={rank}"] if adapter.method != FULL else [
            f"adapter={{method: lora, rank: {rank}}}"]
        arms.append(_arm(f"rank {rank}", rank, override(recipe, [*common, *change], path), recipe,
                         rule))
    return arms


def _arm(name: str, rank: int | None, recipe: Recipe, original: Recipe,
         rule: Mapping[str, Any]) -> Arm:
    """With the rate to start from: the recipe's own where it is LoRA's, full fine-tuning's a tenth
    of that; else the rule's."""
    given = original.training.learning_rate
    if given != "auto" and original.adapter.method != FULL:
        factor = 1.0 if rank is not None else 0.1
        return Arm(name, rank, recipe, given * factor, "the recipe's" if rank is not None else
                   "a tenth of the recipe's")
    if given != "auto" and rank is None:
        return Arm(name, rank, recipe, given, "the recipe's")
    if given != "auto":
        return Arm(name, rank, recipe, given * 10, "ten times the recipe's")
    decision = auto.learning_rate("auto", str(rule["model_type"]), rule["hidden_size"],
                                  FULL if rank is None else recipe.adapter.method)
    return Arm(name, rank, recipe, decision.value, decision.reason)


def run(asked: Asked, runner: Runner, prune: bool) -> Regret:
    """Run what is needed until nothing is, or time is over, and say what was found.

    prune: remove weights and checkpoints of runs that are over; their figures stay.
    """
    searches = [_Search(asked, arm) for arm in asked.arms]
    while True:
        trials = [trial for search in searches for trial in search.wanted()]
        if not trials:
            break
        outcomes = runner.run(trials)
        for search in searches:
            search.learn(outcomes)
        if prune:
            for name in outcomes:
                _prune(asked.folder, name)
        if runner.is_out_of_time:
            break
    return _result(asked, searches, runner.is_out_of_time)


def _prune(folder: StudyDir, name: str) -> None:
    from lorafit.run_dir import remove_directory

    run_dir = folder.run(name)
    if run_dir.result.exists():
        for directory in (run_dir.checkpoints, run_dir.adapter, run_dir.initial_adapter):
            if directory.exists():
                remove_directory(directory)


class _Search:
    """An arm on its way to its rate and its seeds."""

    def __init__(self, asked: Asked, arm: Arm) -> None:
        self.arm, self._asked = arm, asked
        self._known: dict[str, Outcome] = {}
        self._first = asked.recipe.training.seed
        self._prefix = f"{arm.name.replace(' ', '-')}-lr-"

    def learn(self, outcomes: Mapping[str, Outcome]) -> None:
        """Of all outcomes, those of this arm."""
        self._known.update({name: outcome for name, outcome in outcomes.items()
                            if name.startswith(self._prefix)})

    def wanted(self) -> list[Trial]:
        """What has to run next; nothing when the arm is done or cannot be run."""
        if self.failure is not None:
            return []
        places = rates.wanted(self._grid())
        if places:
            return [self._trial(rates.rate_at(self.arm.centre, place)) for place in places]
        refined = self.refined
        if refined is not None and self._outcome(refined) is None:
            return [self._trial(refined)]
        return [self._trial(rate, seed) for rate in self.candidates for seed in self._seeds()
                if self._outcome(rate, seed) is None]

    @property
    def failure(self) -> str | None:
        """Why the arm cannot be run: a run failed, and not because it diverged."""
        return next((known.problem for known in self._known.values()
                     if known.problem is not None and not known.diverged), None)

    @property
    def refined(self) -> float | None:
        """The rate between grid points, where it is not one that was tried anyway."""
        grid = self._grid()
        place = rates.between(grid)
        if place is None or rates.wanted(grid):
            return None
        rate = float(f"{self.arm.centre * rates.STEP**place:.3g}")
        near = rates.rate_at(self.arm.centre, round(place))
        return None if 1 / rates.NEAR < rate / near < rates.NEAR else rate

    @property
    def candidates(self) -> list[float]:
        """The two rates of the lowest losses on the first seed, the lowest first; fewer where the
        others diverged, or one seed is all there is."""
        finite = [(each.loss, each.learning_rate) for each in self.tried()
                  if each.loss is not None]
        return [rate for _, rate in sorted(finite)[: 2 if self._asked.seeds > 1 else 1]]

    @property
    def best(self) -> float | None:
        """The candidate of the lowest mean over seeds, one that diverged being infinite; that of
        the first seed before all are known. None where every rate diverged."""
        means = {}
        for rate in self.candidates:
            known = [self._outcome(rate, seed) for seed in self._seeds()]
            if None in known:
                return self.candidates[0]
            losses = [each.loss for each in known if each is not None and each.loss is not None]
            means[rate] = sum(losses) if len(losses) == len(known) else math.inf
        return min(means, key=lambda rate: means[rate]) if means else None

    @property
    def is_bounded(self) -> bool:
        return rates.is_inside(self._grid())

    def tried(self) -> list[Tried]:
        """Rates of the first seed, ascending."""
        found = []
        for place in range(-rates.FARTHEST, rates.FARTHEST + 1):
            rate = rates.rate_at(self.arm.centre, place)
            if (known := self._outcome(rate)) is not None:
                found.append(Tried(rate, known.loss))
        if (rate_ := self.refined) is not None and (known := self._outcome(rate_)) is not None:
            found.append(Tried(rate_, known.loss))
        return sorted(found, key=lambda each: each.learning_rate)

    def losses_at(self, rate: float | None) -> dict[int, float]:
        """Losses at a rate by seed, as far as there are."""
        if rate is None:
            return {}
        outcomes = {seed: self._outcome(rate, seed) for seed in self._seeds()}
        return {seed: known.loss for seed, known in outcomes.items()
                if known is not None and known.loss is not None}

    def diverged_seeds(self) -> list[int]:
        if self.best is None:
            return []
        outcomes = {seed: self._outcome(self.best, seed) for seed in self._seeds()}
        return [seed for seed, known in outcomes.items() if known is not None
                and known.diverged]

    @property
    def outcomes(self) -> list[Outcome]:
        return list(self._known.values())

    def _seeds(self) -> range:
        return range(self._first, self._first + self._asked.seeds)

    def _grid(self) -> dict[int, float]:
        places = {}
        for place in range(-rates.FARTHEST, rates.FARTHEST + 1):
            known = self._outcome(rates.rate_at(self.arm.centre, place))
            if known is not None:
                places[place] = math.inf if known.loss is None else known.loss
        return places

    def _outcome(self, rate: float, seed: int | None = None) -> Outcome | None:
        return self._known.get(self._name(rate, self._first if seed is None else seed))

    def _name(self, rate: float, seed: int) -> str:
        return f"{self._prefix}{rate:.2e}-seed-{seed}"

    def _trial(self, rate: float, seed: int | None = None) -> Trial:
        seed = self._first if seed is None else seed
        recipe = self.arm.recipe
        training = recipe.training.model_copy(update={"learning_rate": rate, "seed": seed})
        return self._asked.folder.trial(self._name(rate, seed),
                                        recipe.model_copy(update={"training": training}))


def _result(asked: Asked, searches: Sequence[_Search], is_out_of_time: bool) -> Regret:
    from lorafit.study.verdict import sentence

    full = next(search for search in searches if search.arm.rank is None)
    of_full = full.losses_at(full.best)
    arms = [_arm_result(search, of_full, asked.seeds) for search in searches]
    outcomes = [known for search in searches for known in search.outcomes]
    done = [known for known in outcomes if known.steps > 0]
    first = next((known for known in done if known.seed == asked.recipe.training.seed), None)
    remarks = _remarks(asked, searches, done)
    return Regret(
        str(asked.folder.path), asked.recipe.model.base, arms,
        steps=first.steps if first else 0,
        supervised_tokens=first.supervised_tokens if first else 0,
        start_loss=first.start_loss if first else None,
        seeds=[asked.recipe.training.seed + i for i in range(asked.seeds)],
        runs=len(outcomes), run_seconds=sum(known.seconds or 0 for known in outcomes),
        is_complete=not is_out_of_time and all(not arm.missing for arm in arms),
        sentence=sentence(arms, asked.recipe.adapter.rank, first.start_loss if first else None),
        remarks=remarks)


def _arm_result(search: _Search, of_full: Mapping[int, float], seeds: int) -> ArmResult:
    arm, best = search.arm, search.best
    losses = search.losses_at(best)
    both = sorted(losses.keys() & of_full.keys())
    times = [known.step_s for known in search.outcomes if known.step_s is not None]
    memory = [known.peak_memory_bytes for known in search.outcomes if known.peak_memory_bytes]
    return ArmResult(
        arm.name, arm.rank, search.tried(), best, search.is_bounded,
        [(rate, spread(list(at.values()))) for rate in search.candidates
         if (at := search.losses_at(rate))],
        losses, spread(list(losses.values())) if losses else None,
        paired([losses[seed] for seed in both], [of_full[seed] for seed in both])
        if both and arm.rank is not None else None,
        next((known.trained_parameters for known in search.outcomes if known.trained_parameters),
             None),
        median(times) if times else None, max(memory) if memory else None,
        missing=_missing(search, losses, seeds))


def _missing(search: _Search, losses: Mapping[int, float], seeds: int) -> str:
    if search.failure is not None:
        return f"failed: {search.failure}"
    if (diverged := search.diverged_seeds()):
        return f"seed {', '.join(map(str, diverged))} diverged at the best rate"
    if search.wanted():
        return "its best rate is not found yet" if len(losses) <= 1 and seeds > 1 \
            and not search.is_bounded else f"{len(losses)} of {seeds} seeds at its best rate"
    if search.best is None:
        return "every rate diverged"
    if not search.is_bounded:
        return "the best rate is at the edge of what was tried"
    return ""


def _remarks(asked: Asked, searches: Sequence[_Search], done: Sequence[Outcome]) -> list[str]:
    """What the reader must know; a programming error where runs were not equal."""
    remarks = []
    for seed in {known.seed for known in done}:
        alike = [known for known in done if known.seed == seed]
        told = {(known.steps, known.supervised_tokens, known.rows) for known in alike}
        if len(told) > 1:
            remarks.append(f"runs of seed {seed} were not trained on the same rows in the same "
                           "order (steps left out, or files that changed meanwhile): their losses "
                           "are not comparable")
    if len({known.held_out for known in done}) > 1:
        remarks.append("seeds hold out other rows (data.eval_fraction): the spread over seeds "
                       "holds that of the rows; differences are paired by seed and do not")
    if asked.seeds == 1:
        remarks.append("one seed tells nothing of noise: no interval can be given")
    if asked.recipe.adapter.method == FULL:
        remarks.append("the recipe trains in full; LoRA goes by its defaults (alpha 32, all linear "
                       "layers)")
    for search in searches:
        if search.best is not None and not search.is_bounded and not search.failure:
            remarks.append(f"{search.arm.name}: the best rate is at the edge of what was tried")
    return remarks

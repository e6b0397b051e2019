"""What the verbs on recipes do.

What prints, like all that is heavy, is imported once the recipe is known to be right.
"""

import os
import re
import sys
import time
from pathlib import Path
from typing import Any

from lorafit import libraries
from lorafit.cli.before import (
    check_cheaply,
    keep_commits,
    on_hub,
    refuse_beside,
    refuse_taken_json,
    settle_hub,
)
from lorafit.data.given import Given, shape_of
from lorafit.data.sources import Location
from lorafit.errors import Problem, UserError
from lorafit.launch import rank as ranks
from lorafit.launch import request as requests
from lorafit.recipe.adapter import Adapter
from lorafit.recipe.loading import load_recipe
from lorafit.recipe.schema import Model, Recipe
from lorafit.recipe.starter import starter_recipe
from lorafit.run_dir import RunDir, refuse_target, write_text
from lorafit.train.signals import StopRequest, listening
from lorafit.train.strategy.wanted import AUTO, Wanted, refuse_misfit, refuse_ranks
from lorafit.train.trackers import refuse_missing


def train(recipe_path: Path, overrides: list[str], *, resume: bool, or_start: bool,
          stop_after_s: float | None, options: requests.Options, strategy: str, cpu_offload: bool,
          context_parallel: int, smoke: bool, started_s: float, rank_timeout_s: float) -> None:
    rank = ranks.recognise()
    # From here on: while libraries are loaded, a signal ends the process with the documented code.
    with listening(_deadline_s(stop_after_s, started_s), is_rank=rank is not None) as stop:
        if rank is None:
            requests.check(options)
        elif not rank.is_own:
            requests.refuse_beside_launcher(options, rank)
        recipe = load_recipe(recipe_path, overrides)
        wanted = Wanted(strategy, cpu_offload, context_parallel)
        refuse_misfit(wanted, recipe)
        if smoke:
            refuse_beside("--smoke", "runs in one process", dict.fromkeys(options.given(), True))
            _smoke(recipe, stop, started_s)
        elif rank is not None:
            _train_as_rank(recipe, rank, resume, or_start, stop, started_s, wanted, rank_timeout_s)
        else:
            run = RunDir(Path(recipe.output.dir))
            goes_on = resume or (or_start and run.holds_a_run())
            # A machine that comes back to its job finds the run that this has begun.
            may_come_back = (options.nodes or 1) > 1 and options.restarts > 0
            check_cheaply(recipe, run, goes_on or may_come_back)
            refuse_missing(recipe.output)
            if goes_on:
                keep_commits(recipe, run)
            settle_hub(recipe)
            ranks.quiet_sockets()
            from lorafit.model.device import gpu_count

            batch_size = recipe.training.batch_size
            request = requests.settle(options, gpu_count(), batch_size, context_parallel)
            if request.nodes == 1:  # of several, the ranks count themselves
                refuse_ranks(wanted, request.processes, batch_size)
            if request.processes * request.nodes == 1 and not request.restarts:
                _train_here(recipe, resume or or_start, or_start, stop, started_s, wanted)
                return
            from lorafit.launch.job import launch

            if code := launch(sys.argv[1:], request):
                sys.exit(code)


def _train_as_rank(recipe: Recipe, rank: ranks.Rank, resume: bool, or_start: bool,
                   stop: StopRequest, started_s: float, wanted: Wanted,
                   rank_timeout_s: float) -> None:
    ranks.settle()
    or_start = or_start or ranks.restarts() > 0
    if resume or or_start:
        keep_commits(recipe, RunDir(Path(recipe.output.dir)))
    settle_hub(recipe)
    if not rank.is_own:
        from lorafit.model.device import gpu_count

        requests.check_rank(rank, gpu_count(), int(os.environ["LOCAL_WORLD_SIZE"]),
                            recipe.training.batch_size, wanted.context_parallel)
        if ranks.is_main_rank():
            print(rank, flush=True)
    _train_here(recipe, resume or or_start, or_start, stop, started_s, wanted, rank_timeout_s)


# When --stop-after ends a job, in seconds since 1970: ranks that are started again keep to it.
_STOP_AT = "LORAFIT_STOP_AT"


def _deadline_s(stop_after_s: float | None, started_s: float) -> float | None:
    """The perf_counter at which the run is to end."""
    if stop_after_s is None:
        return None
    now = time.perf_counter()
    if ranks.is_rank() and _STOP_AT in os.environ:
        return now + float(os.environ[_STOP_AT]) - time.time()
    os.environ[_STOP_AT] = str(time.time() + started_s + stop_after_s - now)
    return started_s + stop_after_s


def check(recipe_path: Path, overrides: list[str]) -> None:
    recipe = load_recipe(recipe_path, overrides)
    check_cheaply(recipe, RunDir(Path(recipe.output.dir)), resume=True)
    settle_hub(recipe)
    from lorafit.cli import show
    from lorafit.model.adapters.add import add_adapter
    from lorafit.model.adapters.facts import describe
    from lorafit.model.base import meta_model
    from lorafit.train.display import make_display
    from lorafit.train.prepare import prepare
    from lorafit.train.record import Record

    prepared = prepare(recipe, shares=1, watch=make_display(True).rows_tokenised)
    model = meta_model(prepared.config, trust_remote_code=recipe.model.trust_remote_code)
    facts = None if recipe.adapter.row.needs_weights else describe(
        add_adapter(model, recipe.adapter, recipe.training.seed, recipe.model.base))
    show.record(recipe, Record(
        prepared.decisions, facts, prepared.train.as_dict(),
        prepared.held_out.report.as_dict() if prepared.held_out else None, prepared.plan,
        str(prepared.device), 1, [], None, remarks=prepared.remarks,
    ))
    print(f"{recipe_path}: the recipe is fine")


def targets(name: str, recipe_path: Path | None, overrides: list[str], rank: int | None,
            as_json: bool) -> None:
    model, adapter = _model_and_adapter(name, recipe_path, overrides, rank)
    libraries.settle(on_hub(model))
    from lorafit.cli import show_targets
    from lorafit.model.base import load_config, meta_model
    from lorafit.model.survey import survey

    shapes = meta_model(load_config(model), trust_remote_code=model.trust_remote_code)
    found = survey(shapes, adapter, rank or adapter.rank or 16, model.quantization)
    (show_targets.as_json if as_json else show_targets.targets)(model.base, found)


def _model_and_adapter(name: str, recipe_path: Path | None, overrides: list[str],
                       rank: int | None) -> tuple[Model, Adapter]:
    """What `targets` looks at: a recipe's sections, or a model and the default adapter."""
    is_recipe = name.endswith((".yaml", ".yml"))
    if is_recipe and recipe_path is not None:
        raise UserError("names a second recipe", f"--recipe {recipe_path}",
                        "give a model and a recipe, or one recipe")
    if is_recipe or recipe_path is not None:
        if rank is not None:
            overrides = [*overrides, f"adapter.rank={rank}"]
        recipe = load_recipe(recipe_path or Path(name), overrides)
        return (recipe.model if is_recipe else Model(base=_model_name(name))), recipe.adapter
    if overrides:
        raise UserError("there is no recipe to override", f"--set {overrides[0]}",
                        "name one with --recipe, or use --rank")
    return Model(base=_model_name(name)), Adapter(rank=rank or 16)


def _model_name(name: str) -> str:
    if not name.strip() or "\0" in name or len(name) > 255:
        raise UserError("is no name of a model", name[:40] or "MODEL",
                        "name a model directory, a hub id, or tiny")
    if name.startswith((".", "/", "~")) and not Path(os.path.expanduser(name)).exists():
        raise UserError("no such model", name, "name a model directory, a hub id, or tiny")
    return name


# What a recipe says itself, by the option that says it of random weights.
_SAID_BY_RECIPE = {
    "shape": ("--shape", "model.base"), "rank": ("--rank", "adapter.rank"),
    "batch_size": ("--batch-size", "training.batch_size"), "length": ("--length", "data.train"),
    "even": ("--even", "data.train"), "supervised": ("--supervised", "data.train"),
    "dtype": ("--dtype", "model.dtype"), "quantization": ("--quantization", "model.quantization"),
    "micro_tokens": ("--micro-tokens", "training.micro_batch_size"),
    "checkpointing": ("--activation-checkpointing", "training.activation_checkpointing"),
}


def bench(recipe_path: Path | None, overrides: list[str], rounds: int, also: str | None,
          options: dict[str, Any], json_to: Path | None) -> None:
    from lorafit.bench.request import SIDES, Request, check_request, extra_sides

    sides = (*SIDES, *extra_sides(also))
    refuse_taken_json(json_to)
    given = {name: value for name, value in options.items() if value is not None}
    if recipe_path is None:
        if overrides:
            raise UserError("there is no recipe to override", f"--set {overrides[0]}",
                            "name one, or use --rank, --dtype and the like")
        request = Request(**given)
        check_request(request)
        libraries.settle(needs_hub=False)
    elif given:
        raise UserError(problems=[
            Problem("the recipe says that itself", option,
                    f"leave it out, or change the recipe: --set {key}=…")
            for option, key in map(_SAID_BY_RECIPE.__getitem__, given)])
    else:
        recipe = load_recipe(recipe_path, overrides)
        check_cheaply(recipe, RunDir(Path(recipe.output.dir)), resume=True, checks=False)
        settle_hub(recipe)
    from lorafit.bench import run, workload
    from lorafit.cli import show_bench

    asked = workload.of_request(request) if recipe_path is None \
        else workload.of_recipe(recipe, recipe_path.name)
    show_bench.either(json_to, run.bench(asked, rounds, sides, show_bench.progress))


def preview(recipe_path: Path, overrides: list[str], rows: int | None, places: list[str],
            split: str, html: Path | None, tokens: bool) -> int:
    recipe = load_recipe(recipe_path, overrides)
    if split not in ("train", "eval"):
        raise UserError(f"no rows are called {split!r}", "--split", "use train or eval")
    if split == "eval" and recipe.data.eval is None and not recipe.data.eval_fraction:
        raise UserError("the recipe holds no rows out", "--split",
                        "set data.eval or data.eval_fraction")
    if html is not None:
        refuse_target(html, "choose another file with --html")
        if not html.absolute().parent.is_dir():
            raise UserError("no such directory", str(html.parent),
                            "make it, or choose another file with --html")
    check_cheaply(recipe, RunDir(Path(recipe.output.dir)), resume=True, checks=False)
    settle_hub(recipe)
    from lorafit.cli import show
    from lorafit.model.base import load_tokenizer
    from lorafit.model.device import find_device
    from lorafit.preview import facts, terminal
    from lorafit.preview.page import page
    from lorafit.preview.words import next_commands

    wanted = facts.Wanted(rows or (3 if html is None else 20), tuple(places), split)
    seen = facts.look(recipe, load_tokenizer(recipe.model), find_device()[1], wanted,
                      terminal.Progress())
    if html is not None:
        write_text(html, page(seen, f"{recipe_path.name}: what the model will see"))
        print(f"{html} written")
    else:
        terminal.show(seen, terminal.make_console(), separate=tokens)
        print()
    show.next_commands(next_commands(seen, str(recipe_path), overrides))
    return 2 if seen.problems else 0


def init(model: str, data: Path, evaluation: Path | None, quantization: str,
         output: Path) -> None:
    refuse_target(output, "choose another file with --output")
    if not output.parent.is_dir():
        raise UserError("no such directory", str(output.parent),
                        "make it, or choose another file with --output")
    if quantization not in ("none", "nf4", "fp4", "int8"):
        raise UserError(f"unknown quantization {quantization!r}", "--quantization",
                        "use none, nf4, fp4 or int8")
    shape = shape_of(_file(data, "train"))
    if evaluation is not None:
        shape_of(_file(evaluation, "test"))
    text = starter_recipe(model, str(data), str(evaluation) if evaluation else None, {},
                          quantization, f"runs/{_run_name(data)}")
    write_text(output, text)
    print(f"{output} written; the data is read as {shape.format} ({shape.reason})")
    from lorafit.cli import show

    show.next_commands([f"lorafit plan {output}", f"lorafit preview {output}",
                        f"lorafit train {output}"])


def _run_name(data: Path) -> str:
    """The data's name without endings and signs; of a pattern the folder's."""
    for name in (data.name.partition(".")[0], data.absolute().parent.name):
        if name and re.fullmatch(r"[\w-]+", name):
            return name
    return "run"


def _train_here(recipe: Recipe, resume: bool, or_start: bool, stop: StopRequest,
                started_s: float, wanted: Wanted = AUTO,
                rank_timeout_s: float | None = None) -> None:
    from lorafit.cli import show
    from lorafit.train.heartbeat import RANK_TIMEOUT_S
    from lorafit.train.run import train as run_training

    result = run_training(recipe, resume=resume, or_start=or_start, stop=stop,
                          started_s=started_s, wanted=wanted,
                          rank_timeout_s=rank_timeout_s or RANK_TIMEOUT_S,
                          announce=lambda record: show.record(recipe, record))
    if ranks.is_main_rank():
        show.finished(recipe, result)


def _smoke(recipe: Recipe, stop: StopRequest, started_s: float) -> None:
    """The recipe on stand-ins: train, merge and export in a temporary folder."""
    import tempfile

    reachable = settle_hub(recipe)
    from lorafit.cli import show
    from lorafit.export.adapter import export_adapter as run_export
    from lorafit.export.merge import merge as run_merge
    from lorafit.model.trained import open_adapter
    from lorafit.smoke import smoke_recipe

    with tempfile.TemporaryDirectory(prefix="lorafit-smoke-") as folder:
        os.environ["LORAFIT_CACHE"] = f"{folder}/cache"
        small = smoke_recipe(recipe, Path(folder), reachable)
        _train_here(small, False, False, stop, started_s)
        source = open_adapter(Path(small.output.dir))
        ran = ["training"]
        if small.adapter.row.merges:
            show.merged(run_merge(source, Path(folder) / "merged"))
            ran.append("merge")
        if small.adapter.row.where != "weights":  # full fine-tuning leaves a model, no adapter
            show.exported(run_export(source, Path(folder) / "exported"))
            ran.append("export")
    print(f"smoke test passed: {', '.join(ran)}; nothing was kept")


def _file(path: Path, split: str) -> Given:
    return Given(Location(str(path)), split, 1.0, "auto", {}, None)

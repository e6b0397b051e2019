"""What each verb does: the rooms in order, and what a person is shown."""

import json
import math
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lorafit import libraries
from lorafit.cli import show
from lorafit.data.reading import Given, check_source, shape_of, sources_of
from lorafit.data.sources import Location
from lorafit.errors import Problem, UserError
from lorafit.launch import is_main_rank, launch, started_by_a_launcher
from lorafit.recipe.adapter import Adapter
from lorafit.recipe.loading import load_recipe
from lorafit.recipe.schema import Data, Model, Recipe
from lorafit.recipe.starter import starter_recipe
from lorafit.run_dir import RunDir, refuse_existing, write_text


def train(recipe_path: Path, overrides: list[str], *, resume: bool, processes: int | None,
          smoke: bool, started_s: float) -> None:
    recipe = load_recipe(recipe_path, overrides)
    if smoke:
        _smoke(recipe, started_s)
        return
    run = RunDir(Path(recipe.output.dir))
    if not started_by_a_launcher():
        _check_cheaply(recipe, run, resume)
    _settle(recipe)
    if not started_by_a_launcher():
        from lorafit.model.device import gpu_count

        gpus = gpu_count()
        ranks = processes or max(1, gpus)
        if 0 < gpus < ranks:
            raise UserError(f"{ranks} processes for {gpus} GPUs", "--num-processes",
                            f"use at most {gpus}")
        if ranks > recipe.training.batch_size:
            raise UserError(f"{ranks} processes for a batch of {recipe.training.batch_size}",
                            "training.batch_size", "raise it, or use --num-processes")
        if ranks > 1:
            code = launch(sys.argv[1:], ranks)
            if code:
                sys.exit(code)
            return
    _train_here(recipe, resume, started_s)


def check(recipe_path: Path, overrides: list[str]) -> None:
    recipe = load_recipe(recipe_path, overrides)
    _check_cheaply(recipe, RunDir(Path(recipe.output.dir)), resume=True)
    _settle(recipe)
    from lorafit.model.adapters.add import add_adapter
    from lorafit.model.adapters.facts import describe
    from lorafit.model.base import meta_model
    from lorafit.train.display import make_display
    from lorafit.train.run import Record, prepare

    prepared = prepare(recipe, ranks=1, watch=make_display(True).rows_tokenised)
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
    libraries.settle(_on_hub(model))
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
    _refuse_taken_json(json_to)
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
        _check_cheaply(recipe, RunDir(Path(recipe.output.dir)), resume=True)
        _settle(recipe)
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
        refuse_existing(html, "choose another file with --html")
        if not html.absolute().parent.is_dir():
            raise UserError("no such directory", str(html.parent),
                            "make it, or choose another file with --html")
    _check_cheaply(recipe, RunDir(Path(recipe.output.dir)), resume=True)
    _settle(recipe)
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
    refuse_existing(output, "choose another file with --output")
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
    show.next_commands([f"lorafit check {output}", f"lorafit train {output}"])


def _run_name(data: Path) -> str:
    """The data's name without endings and signs; of a pattern the folder's."""
    for name in (data.name.partition(".")[0], data.absolute().parent.name):
        if name and re.fullmatch(r"[\w-]+", name):
            return name
    return "run"


def generate(trained: Path, prompt: str, which: str, base: str | None, max_new_tokens: int,
             temperature: float, top_p: float, seed: int) -> None:
    if which not in ("base", "adapter", "both"):
        raise UserError(f"nobody is called {which!r}", "--with", "use base, adapter or both")
    _settle_for(trained, base)
    from lorafit.data.chat import Renderer
    from lorafit.data.examples import Exchange
    from lorafit.data.pipeline import make_renderer
    from lorafit.model.adapters.files import load_adapter
    from lorafit.model.base import load_for_inference
    from lorafit.model.generate import Sampling, answer
    from lorafit.model.trained import open_adapter

    source = open_adapter(trained, base)
    tokenizer = source.tokenizer()
    data = source.data
    renderer = make_renderer(data, tokenizer) if data else Renderer(
        tokenizer, template=None, render="auto", system=None)
    model = load_for_inference(source.model)
    text, _ = renderer.prompt(Exchange(prompt, "-"))
    sampling = Sampling(max_new_tokens, temperature, top_p, seed)
    is_chat = renderer.exchanges_as_chat
    answers = {}
    if which in ("base", "both"):
        answers["base"] = answer(model, tokenizer, [text], sampling, is_chat=is_chat)[0]
    if which in ("adapter", "both"):
        model = load_adapter(model, source.directory)
        answers["adapter"] = answer(model, tokenizer, [text], sampling, is_chat=is_chat)[0]
    show.answers(answers)


def evaluate(run: Path, rows: int | None, max_new_tokens: int, samples: int) -> None:
    _settle_for(run, None)
    from lorafit.evaluate.exact_match import evaluate as measure
    from lorafit.model.trained import open_adapter

    result = measure(open_adapter(run), rows, max_new_tokens, show.progress)
    show.evaluation(result, samples)


def merge(trained: Path, output: Path | None, base: str | None, dtype: str | None) -> None:
    if dtype not in (None, "float32", "bfloat16", "float16"):
        raise UserError(f"unknown dtype {dtype!r}", "--dtype", "use float32, bfloat16 or float16")
    target = output or trained / "merged"
    refuse_existing(target, "choose another directory with --output")
    _settle_for(trained, base)
    from lorafit.export.merge import merge as run_merge
    from lorafit.model.trained import open_adapter

    show.merged(run_merge(open_adapter(trained, base), target, dtype, show.progress))


def export_adapter(trained: Path, output: Path | None, base: str | None) -> None:
    target = output or trained / "exported"
    refuse_existing(target, "choose another directory with --output")
    _settle_for(trained, base)
    from lorafit.export.adapter import export_adapter as run_export
    from lorafit.model.trained import open_adapter

    show.exported(run_export(open_adapter(trained, base), target))


def inspect(trained: Path, base: str | None, *, every_layer: bool, share: float | None,
            rank: int | None, other: Path | None, output: Path | None,
            json_to: Path | None) -> None:
    cuts = share is not None or rank is not None
    if share is not None and rank is not None:
        raise UserError("--shrink and --rank exclude each other", "--rank",
                        "leave one of them out")
    if cuts and other is not None:
        raise UserError("--compare writes no adapter", "--compare",
                        "leave it out, or leave out --shrink and --rank")
    if output is not None and not cuts:
        raise UserError("nothing is written without --shrink or --rank", "--output",
                        "add --shrink 0.99, or leave it out")
    target = output or trained / "shrunk"
    if cuts:
        refuse_existing(target, "choose another directory with --output")
    _refuse_taken_json(json_to)
    _settle_for(trained, base)
    from lorafit.cli import show_inspect
    from lorafit.export.delta.compare import compare_adapters
    from lorafit.export.delta.inspection import inspect_adapter
    from lorafit.export.delta.shrink import shrink
    from lorafit.model.trained import open_adapter

    source = open_adapter(trained, base)
    if cuts:
        result = shrink(source, target, share=share, rank=rank, say=_progress_beside(json_to))
        show_inspect.either(json_to, result, show_inspect.shrunk)
    elif other is not None:
        pair = compare_adapters(source, open_adapter(other, base))
        show_inspect.either(json_to, pair, show_inspect.comparison)
    else:
        seen = inspect_adapter(source)
        show_inspect.either(json_to, seen, lambda it: show_inspect.inspection(it, every_layer))


def combine(trained: list[Path], output: Path, how: str, weights: str | None,
            density: float | None, rank: int | None, seed: int, base: str | None,
            json_to: Path | None) -> None:
    refuse_existing(output, "choose another directory with --output")
    _refuse_taken_json(json_to)
    _settle_for(trained[0], base)
    from lorafit.cli import show_inspect
    from lorafit.export.delta.combine import combination
    from lorafit.export.delta.combine import combine as run_combine
    from lorafit.model.trained import open_adapter

    wanted = combination(how, _numbers(weights), density, rank, seed, len(trained))
    sources = [open_adapter(path, base) for path in trained]
    result = run_combine(sources, output, wanted, _progress_beside(json_to))
    show_inspect.either(json_to, result, show_inspect.combined)


def _numbers(text: str | None) -> list[float] | None:
    """The factors of `--weights`. UserError for what is no list of numbers."""
    if text is None:
        return None
    try:
        numbers = [float(word) for word in text.split(",")]
    except ValueError:
        numbers = [math.nan]
    if not all(map(math.isfinite, numbers)):
        raise UserError(f"{text!r} is no list of numbers", "--weights",
                        "for example --weights 0.7,0.3")
    return numbers


def _refuse_taken_json(target: Path | None) -> None:
    if target is None or str(target) == "-":
        return
    refuse_existing(target, "choose another file with --json")
    if not target.absolute().parent.is_dir():
        raise UserError("no such directory", str(target.parent),
                        "make it, or choose another file with --json")


def _progress_beside(json_to: Path | None) -> Callable[[str], None]:
    """Progress on the terminal, unless the standard output is a script's."""
    return (lambda text: None) if str(json_to) == "-" else show.progress


def cache(prefixes: list[str], delete_all: bool, unused_days: float | None) -> None:
    from lorafit.data import cache as rows

    known = rows.entries()
    chosen = known if delete_all else []
    for prefix in prefixes:
        found = [entry for entry in known if entry.key.startswith(prefix)]
        if len(found) != 1:
            what = "no entry begins" if not found else f"{len(found)} entries begin"
            raise UserError(f"{what} with {prefix!r}", "--delete", "list them: lorafit cache")
        chosen = [*chosen, *found]
    if unused_days is not None:
        chosen = [*chosen, *rows.unused_for(unused_days)]
    if delete_all or prefixes or unused_days is not None:
        unique = list({entry.key: entry for entry in chosen}.values())
        rows.delete(unique)
        show.cache_deleted(unique)
    else:
        show.cache(str(rows.cache_directory()), known)


def _train_here(recipe: Recipe, resume: bool, started_s: float) -> None:
    from lorafit.train.run import train as run_training

    result = run_training(recipe, resume=resume, started_s=started_s,
                          announce=lambda record: show.record(recipe, record))
    if is_main_rank():
        show.finished(recipe, result)


def _smoke(recipe: Recipe, started_s: float) -> None:
    """The recipe on stand-ins: train, merge and export in a temporary folder."""
    import tempfile

    reachable = _settle(recipe)
    from lorafit.export.adapter import export_adapter as run_export
    from lorafit.export.merge import merge as run_merge
    from lorafit.model.trained import open_adapter
    from lorafit.smoke import smoke_recipe

    with tempfile.TemporaryDirectory(prefix="lorafit-smoke-") as folder:
        os.environ["LORAFIT_CACHE"] = f"{folder}/cache"
        small = smoke_recipe(recipe, Path(folder), reachable)
        _train_here(small, False, started_s)
        source = open_adapter(Path(small.output.dir))
        ran = ["training"]
        if small.adapter.row.merges:
            show.merged(run_merge(source, Path(folder) / "merged"))
            ran.append("merge")
        if small.adapter.row.where != "weights":  # full fine-tuning leaves a model, no adapter
            show.exported(run_export(source, Path(folder) / "exported"))
            ran.append("export")
    print(f"smoke test passed: {', '.join(ran)}; nothing was kept")


def _check_cheaply(recipe: Recipe, run: RunDir, resume: bool) -> None:
    """What can be known to be wrong in milliseconds, before anything heavy is imported."""
    if not resume:
        run.refuse_taken()
    for given in _sources(recipe.data):
        if not given.location.is_hub:
            check_source(given)
    base = recipe.model.base
    if base.startswith((".", "/", "~")) and not Path(os.path.expanduser(base)).exists():
        raise UserError("no such base model", f"model.base: {base}",
                        "name a model directory, a hub id, or tiny")


def _settle(recipe: Recipe) -> bool:
    """Prepare the hub libraries for what the recipe needs; whether the hub can be reached."""
    return libraries.settle(_on_hub(recipe.model) or _data_on_hub(recipe.data))


def _settle_for(trained: Path, base: str | None) -> None:
    """The same for a run or an adapter."""
    if RunDir(trained).recipe.exists():
        _settle(load_recipe(RunDir(trained).recipe))
        return
    config = trained / "adapter_config.json"
    name = base
    if name is None and config.is_file():
        try:
            name = json.loads(config.read_text(encoding="utf-8")).get("base_model_name_or_path")
        except (ValueError, AttributeError):
            name = None
    libraries.settle(name is not None and _on_hub(Model(base=name)))


def _on_hub(model: Model) -> bool:
    return model.base != "tiny" and not Path(model.base).exists()


def _data_on_hub(data: Data) -> bool:
    return any(given.location.is_hub for given in _sources(data))


def _sources(data: Data) -> list[Given]:
    return [*sources_of(data, "train"), *sources_of(data, "eval")]


def _file(path: Path, split: str) -> Given:
    return Given(Location(str(path)), split, 1.0, "auto", {}, None)

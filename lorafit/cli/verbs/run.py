"""What the verbs on runs and adapters do."""

import math
from collections.abc import Callable
from pathlib import Path

from lorafit.cli import show
from lorafit.cli.before import refuse_beside, refuse_taken_json, settle_hub_for
from lorafit.errors import UserError
from lorafit.export.formats import check_format, format_named
from lorafit.run_dir import refuse_target


def generate(trained: Path, prompt: str, which: str, base: str | None, max_new_tokens: int,
             temperature: float, top_p: float, seed: int) -> None:
    if which not in ("base", "adapter", "both"):
        raise UserError(f"nobody is called {which!r}", "--with", "use base, adapter or both")
    settle_hub_for(trained, base)
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


def merge(trained: Path, output: Path | None, base: str | None, dtype: str | None,
          onto: str = "full", check: str = "auto", *, compare: bool = False, plan: bool = False,
          json_to: Path | None = None) -> None:
    for given, option, known in ((dtype or "float32", "dtype", ("float32", "bfloat16", "float16")),
                                 (onto, "onto", ("full", "dequantised", "requantised")),
                                 (check, "check", ("auto", "logits", "tensors"))):
        if given not in known:
            raise UserError(f"unknown {option} {given!r}", f"--{option}",
                            f"use {', '.join(known[:-1])} or {known[-1]}")
    writes_nothing = "--compare" if compare else "--plan" if plan else ""
    refuse_beside(writes_nothing, "writes nothing", {
        "--output": output is not None, "--check": check != "auto", "--plan": compare and plan,
        "--onto": compare and onto != "full", "--dtype": compare and dtype is not None})
    if json_to is not None and not writes_nothing:
        raise UserError("only goes with --compare or --plan", "--json", "leave it out")
    target = output or trained / "merged"
    if not writes_nothing:
        refuse_target(target, "choose another directory with --output")
    refuse_taken_json(json_to)
    settle_hub_for(trained, base)
    from lorafit.cli import show_inspect, show_merge
    from lorafit.export.certify import certify_merge
    from lorafit.export.merge import compare_ways, plan_of
    from lorafit.export.merge import merge as run_merge
    from lorafit.model.trained import open_adapter

    source = open_adapter(trained, base)
    if compare:
        show_inspect.either(json_to, compare_ways(source, _progress_beside(json_to)),
                            lambda found: show_merge.ways(found, trained))
    elif plan:
        show_inspect.either(json_to, plan_of(source, dtype, onto=onto), show_merge.plan)
    else:
        result = run_merge(source, target, dtype, show.progress, onto=onto, by=check)
        certify_merge(source, result)
        show.merged(result)


def export_adapter(trained: Path, output: Path | None, base: str | None, form: str,
                   max_rank: int | None = None) -> None:
    check_format(form)
    target = output or trained / ("exported" if form == "peft" else f"exported-{form}")
    refuse_target(target, "choose another directory with --output")
    settle_hub_for(trained, base)
    from lorafit.export.adapter import export_adapter as run_export
    from lorafit.export.certify import certify_export
    from lorafit.model.trained import open_adapter

    source = open_adapter(trained, base)
    result = run_export(source, target, format_named(form), max_rank=max_rank, say=show.progress)
    certify_export(source, result, form, result.command)
    show.exported(result)


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
        refuse_target(target, "choose another directory with --output")
    refuse_taken_json(json_to)
    settle_hub_for(trained, base, *([other] if other is not None else []))
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
    refuse_target(output, "choose another directory with --output")
    refuse_taken_json(json_to)
    settle_hub_for(trained[0], base, *trained[1:])
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


def _progress_beside(json_to: Path | None) -> Callable[[str], None]:
    """Progress on the terminal, unless the standard output is a script's."""
    return (lambda text: None) if str(json_to) == "-" else show.progress

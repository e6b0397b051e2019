"""Whether the programs that serve adapters and models answer as what was trained.

    python scripts/prove_engines.py [--engines peft,vllm,mlx] [--bases …] [--kinds …]

Needs a Python that has lorafit. It trains small adapters of every kind on small bases of several
architectures, exports and merges them with lorafit, builds an environment for each program from the
package index (gigabytes, kept under --work for the next run), has every program continue the same
prompts greedily in float32, and compares token ids with those of lorafit's own model. Nothing is
sent anywhere; servers listen on 127.0.0.1.

What was trained is kept under --work too, and what was answered for the same files, so a run that
was stopped goes on.
"""

import argparse
import json
import os
import platform
import shutil
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from engines import ENGINES  # noqa: E402
from engines.engine import Engine, EngineError, ask  # noqa: E402
from engines.report import Cell, as_json, cell, page  # noqa: E402
from environment import BuildError, build  # noqa: E402


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    from engines.cases import BASES, KINDS

    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("engines-work"), metavar="DIR",
                        help="for environments, bases, runs and logs (default: %(default)s)")
    parser.add_argument("--engines", default=",".join(ENGINES), metavar="LIST",
                        help="which, in this order (default: all: %(default)s)")
    parser.add_argument("--bases", default=",".join(BASES), metavar="LIST",
                        help="(default: %(default)s)")
    parser.add_argument("--kinds", default=",".join(KINDS), metavar="LIST",
                        help="of adapters (default: %(default)s)")
    parser.add_argument("--new-tokens", type=int, default=24, help="(default: %(default)s)")
    parser.add_argument("--teach", type=int, default=300, metavar="STEPS",
                        help="steps that a base is taught for (default: %(default)s)")
    parser.add_argument("--limit-minutes", type=float, default=60,
                        help="longest that a program may take for a base (default: %(default)g)")
    parser.add_argument("--build-only", action="store_true",
                        help="build the environments and run nothing")
    parser.add_argument("--markdown", type=Path, metavar="OUT", help="write the page here")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the figures here")
    parsed = parser.parse_args(arguments)
    for option, known in (("engines", ENGINES), ("bases", BASES), ("kinds", KINDS)):
        wanted = getattr(parsed, option).split(",")
        if unknown := [name for name in wanted if name not in known]:
            parser.error(f"--{option}: no such thing as {', '.join(unknown)}. "
                         f"There are {', '.join(known)}.")
        setattr(parsed, option, wanted)
    parsed.work = parsed.work.absolute()
    return parsed


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)


def build_all(engines: list[Engine], work: Path) -> dict[str, str]:
    """Why an engine cannot run here, by its name."""
    failures = {}
    for engine in engines:
        if engine.environment is None:
            failures[engine.name] = engine.why_not
            continue
        try:
            build(engine.environment, engine.torch, work)
        except BuildError as error:
            failures[engine.name] = f"its environment could not be built: {error}"
            say(f"{engine.name}: {failures[engine.name]}")
    return failures


@cache
def export(run: Path, form: str) -> Path | list[str]:
    """Where the exported adapter is, made anew, or every reason against it."""
    from lorafit.errors import UserError
    from lorafit.export.adapter import export_adapter
    from lorafit.export.formats import format_named
    from lorafit.model.trained import open_adapter

    target = run / f"exported-{form}"
    shutil.rmtree(target, ignore_errors=True)
    try:
        export_adapter(open_adapter(run), target, format_named(form))
    except UserError as error:
        return [problem.what for problem in error.problems]
    return target


@cache
def merged(run: Path) -> Path | list[str]:
    """The same for the merged model."""
    from lorafit.errors import UserError
    from lorafit.export.merge import merge
    from lorafit.model.trained import open_adapter

    target = run / "merged"
    shutil.rmtree(target, ignore_errors=True)
    try:
        merge(open_adapter(run), target)
    except UserError as error:
        return [problem.what for problem in error.problems]
    return target


def merged_for(engine: Engine, case: Any, folder: Path) -> Path | list[str]:
    """The merged model in the form that a program loads, or why it has none."""
    from lorafit.errors import UserError

    found = merged(case.run)
    if isinstance(found, list):
        return found
    try:
        return engine.model(found, folder / f"merged-{case.name}")
    except UserError as error:
        return [problem.what for problem in error.problems]


def prove(engine: Engine, base: str, base_path: Path, cases: list[Any],
          arguments: argparse.Namespace, why_not: str) -> tuple[dict[tuple[str, str, str], Cell],
                                                                 dict[str, Any]]:
    """The cells of one program on one base, and what the program said of itself."""
    from engines.cases import prompts

    folder = arguments.work / "asked" / engine.name / base
    cells: dict[tuple[str, str, str], Cell] = {}
    given: dict[str, dict[str, str]] = {"adapters": {}, "merged": {}}
    asked = {}
    for case in cases:
        exported = export(case.run, engine.format) if engine.format is not None else []
        is_refused = isinstance(exported, list)
        both = {"adapters": exported, "merged": merged_for(engine, case, folder)
                if engine.merged == "all" or (engine.merged == "refused" and is_refused) else []}
        for key, made in both.items():
            if not made:
                continue
            place = (base, case.kind, f"{engine.name}:{key}")
            if isinstance(made, list):
                cells[place] = Cell(refused=tuple(made))
            elif why_not:
                cells[place] = Cell(not_run=why_not)
            else:
                given[key][case.name] = str(made)
                asked[place] = (case, case.name if key == "adapters" else f"merged:{case.name}")
    if not asked:
        return cells, {}
    try:
        found = ask(engine, arguments.work, folder, {
            "base": str(engine.model(base_path, folder / "base")), **given,
            "prompts": prompts(base_path), "new_tokens": arguments.new_tokens,
            "dtype": "float32"}, 60 * arguments.limit_minutes)
    except EngineError as error:
        return cells | {place: Cell(failed=str(error).partition(" (/")[0])
                        for place in asked}, {}
    for place, (case, name) in asked.items():
        cells[place] = cell(found["answers"][name], case.answers, found.get("base"))
    return cells, found


def columns(engines: list[Engine]) -> dict[str, str]:
    headings = {}
    for engine in engines:
        if engine.format is not None:
            headings[f"{engine.name}:adapters"] = f"{engine.title}, adapter"
        if engine.merged != "none":
            headings[f"{engine.name}:merged"] = f"{engine.title}, merged"
    return headings


def machine() -> str:
    """The machine in a line."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines()
                 if line.startswith("model name")]
        model = names[0] if names else model
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cores} cores of {model}, Python {platform.python_version()}"


def main(given: list[str] | None = None) -> int:
    """0 when every answer that was given is right."""
    arguments = parse(given)
    engines = [ENGINES[name] for name in arguments.engines]
    arguments.work.mkdir(parents=True, exist_ok=True)
    failures = build_all(engines, arguments.work)
    if arguments.build_only:
        return 1 if any(engine.environment and engine.name in failures for engine in engines) else 0
    from engines.cases import BASES, train_case, write_base

    from lorafit import libraries
    from lorafit.errors import UserError

    libraries.settle(needs_hub=False)
    cells: dict[tuple[str, str, str], Cell] = {}
    versions: dict[str, str] = {}
    for base in arguments.bases:
        base_path = write_base(base, arguments.work, arguments.teach, say)
        cases = []
        for kind in arguments.kinds:
            say(f"{base}: {kind}")
            try:
                cases.append(train_case(base, kind, arguments.work, base_path,
                                        arguments.new_tokens))
            except UserError as error:
                why = f"lorafit does not train it: {error.problems[0].what}"
                cells |= {(base, kind, column): Cell(not_run=why) for column in columns(engines)}
        for engine in engines:
            say(f"{base}: asking {engine.title}")
            made, told = prove(engine, base, base_path, cases, arguments,
                               failures.get(engine.name, ""))
            cells |= made
            if told:
                versions[engine.title] = f"{told['engine']}: {told['how']}"
            for (_, kind, column), found in made.items():
                say(f"  {column:<16} {kind:<28} {found.as_text([])}"
                    + (f" {'; '.join(found.refused)}{found.failed}" if not found.of else ""))
    how = [f"`python scripts/prove_engines.py --engines {','.join(arguments.engines)}`; "
           f"{machine()}; {arguments.new_tokens} tokens after each of "
           f"{max((found.of for found in cells.values()), default=0)} prompts.", "",
           *(f"- {title}: {text}" for title, text in versions.items()),
           *(f"- {engine.title}: not run, {failures[engine.name]}" for engine in engines
             if engine.name in failures)]
    text = page(columns(engines), {name: BASES[name].title for name in arguments.bases},
                arguments.kinds, cells, how)
    if arguments.markdown:
        arguments.markdown.write_text(text, encoding="utf-8")
    else:
        print(text)
    if arguments.json:
        arguments.json.write_text(json.dumps({
            "machine": machine(), "versions": versions, "cells": as_json(cells)}, indent=1))
    return 1 if any(found.failed or found.equal < found.of for found in cells.values()) else 0


if __name__ == "__main__":
    sys.exit(main())

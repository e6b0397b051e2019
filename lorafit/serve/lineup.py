"""Who is served: adapters of one base, each under a name."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorafit.errors import Problem, UserError
from lorafit.model.base import is_hub_id, resolve_base
from lorafit.model.trained import AdapterSource, open_adapter
from lorafit.recipe.schema import Model
from lorafit.serve.names import split_name

_SAME = ("base", "revision", "quantization", "dtype", "trust_remote_code")


@dataclass(frozen=True)
class Lineup:
    """The base, the name that it answers to, and the adapters by theirs."""

    model: Model
    base_name: str
    adapters: dict[str, AdapterSource]


def gather(named: Sequence[str], base: str | None = None, dtype: str | None = None) -> Lineup:
    """The adapters that `RUN` or `NAME=RUN` mean. UserError unless all are on one base.

    base: takes the place of the base that the adapters name. dtype: the number format of all,
    in place of the runs' own.
    """
    adapters: dict[str, AdapterSource] = {}
    for text in named:
        name, path = split_name(text)
        source = opened(path, base, dtype)
        if name in adapters:
            raise UserError(f"two adapters are called {name}", text,
                            f"give one of them another name: NAME={path}")
        adapters[name] = source
    first = next(iter(adapters.values())).model
    problems = [problem for name, source in adapters.items()
                for problem in other_base(name, source.model, first, next(iter(adapters)))]
    if problems:
        raise UserError(problems=problems)
    base_name = _base_name(first.base)
    if base_name in adapters:
        raise UserError(f"an adapter is called {base_name}, as the base is",
                        str(adapters[base_name].directory), "give it another name: NAME=RUN")
    return Lineup(first, base_name, adapters)


def opened(path: Path, base: str | None, dtype: str | None) -> AdapterSource:
    source = open_adapter(path, base)
    if dtype is None:
        return source
    from dataclasses import replace

    return replace(source, model=source.model.model_copy(update={"dtype": dtype}))


def other_base(name: str, model: Model, first: Model, first_name: str) -> list[Problem]:
    """How the base of an adapter differs from the first one's."""
    problems = []
    for key in _SAME:
        mine, its = _comparable(model, key), _comparable(first, key)
        if mine != its:
            remedy = "serve them apart: one base is in memory at a time"
            if key == "dtype":
                remedy = "say which is to be used: --dtype"
            problems.append(Problem(
                f"{name} was trained on {key} {getattr(model, key)}, {first_name} on "
                f"{getattr(first, key)}", name, remedy))
    return problems


def _comparable(model: Model, key: str) -> Any:
    value = getattr(model, key)
    if key == "base":
        return value if is_hub_id(value) else os.path.realpath(resolve_base(value))
    return value


def _base_name(base: str) -> str:
    """`tiny`, the hub id, or the name of the directory."""
    if os.path.realpath(resolve_base(base)) == os.path.realpath(resolve_base("tiny")):
        return "tiny"
    return base if is_hub_id(base) else Path(os.path.abspath(base)).name

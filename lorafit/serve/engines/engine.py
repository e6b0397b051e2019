"""What an engine is: somebody else's server, and the command line that starts it with adapters."""

import importlib.util
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lorafit.errors import Problem


@dataclass(frozen=True)
class Placed:
    """An adapter as the engine will find it: name, directory, and the largest rank in it."""

    name: str
    directory: Path
    rank: int


@dataclass(frozen=True)
class Plan:
    """What is to be served, and where.

    base: a directory or a hub id. dtype: `auto` leaves it to the engine. template: file of the
    chat template; None leaves it to the tokenizer. gguf: the base for llama.cpp. api_key: what
    clients must bring. on_cpu: whether this machine has no GPU. extra: arguments that are handed
    over as they are, last.
    """

    base: str
    base_name: str
    revision: str | None
    dtype: str
    quantization: str
    trust_remote_code: bool
    adapters: Sequence[Placed]
    template: Path | None
    gguf: Path | None
    host: str
    port: int
    api_key: str | None
    on_cpu: bool
    extra: Sequence[str]


@dataclass(frozen=True)
class Launch:
    """How an engine is started: its command, what its environment has besides ours (keys stay off
    the command line, which every user of a machine can read), and what there is to know."""

    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Engine:
    """Somebody else's server.

    name: what `--engine` takes. form: name of the export format that it loads. how_to_get: said
    where it is not here. find: how its server is started here, None where it is not. refuse: every
    reason why it cannot serve a plan. launch: the whole command.
    """

    name: str
    form: str
    how_to_get: str
    find: Callable[[], list[str] | None]
    refuse: Callable[[Plan], list[Problem]]
    launch: Callable[[list[str], Plan], Launch]


def python_module(package: str, module: str) -> list[str] | None:
    """Start a module of this environment, if its package is installed here."""
    return [sys.executable, "-m", module] if importlib.util.find_spec(package) else None


def program(name: str) -> list[str] | None:
    """Start a program on PATH, if it is there."""
    found = shutil.which(name)
    return [found] if found else None


def server_arguments(plan: Plan) -> list[str]:
    """What vLLM and SGLang call alike: names, address, number format, where the base is from."""
    arguments = ["--served-model-name", plan.base_name, "--host", plan.host,
                 "--port", str(plan.port)]
    if plan.dtype != "auto":
        arguments += ["--dtype", plan.dtype]
    if plan.revision:
        arguments += ["--revision", plan.revision]
    if plan.trust_remote_code:
        arguments.append("--trust-remote-code")
    if plan.template is not None:
        arguments += ["--chat-template", str(plan.template)]
    return arguments


def remark_on_quantised(plan: Plan) -> list[str]:
    """What changes where a run's base was stored in 4 or 8 bits."""
    if plan.quantization == "none":
        return []
    return [f"the adapters were trained on the base in {plan.quantization}; the engine loads it "
            "unquantised, which is another base (docs/exactness.md)"]

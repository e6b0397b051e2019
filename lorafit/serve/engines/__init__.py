"""Engines that serve many adapters on one base: one module each, named here.

In the order in which `auto` looks for them.
"""

from lorafit.errors import UserError
from lorafit.serve.engines.engine import Engine
from lorafit.serve.engines.llama_cpp import LLAMA_CPP
from lorafit.serve.engines.sglang import SGLANG
from lorafit.serve.engines.vllm import VLLM

ENGINES: dict[str, Engine] = {engine.name: engine for engine in (VLLM, SGLANG, LLAMA_CPP)}
OWN = "transformers"  # the small server in `trial`
NAMES = ("auto", *ENGINES, OWN)


def choose(name: str, has_gguf: bool) -> tuple[Engine, list[str]] | None:
    """The engine and how it is started; None for the small server.

    UserError when the one that is asked for is not here. `auto` takes llama.cpp only where a base
    for it is given.
    """
    if name not in NAMES:
        raise UserError(f"unknown engine {name!r}", "--engine", f"use {', '.join(NAMES)}")
    if name == OWN:
        return None
    if name != "auto":
        engine = ENGINES[name]
        if (program := engine.find()) is None:
            raise UserError(f"{name} is not here", "--engine", engine.how_to_get)
        return engine, program
    if has_gguf:
        return choose(LLAMA_CPP.name, has_gguf)
    for engine in (VLLM, SGLANG):
        if (program := engine.find()) is not None:
            return engine, program
    return None

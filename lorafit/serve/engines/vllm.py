"""vLLM: `vllm serve` with `--enable-lora`. Each adapter is a model of its own name.

Arguments as vLLM documents them (docs.vllm.ai, "LoRA Adapters"; vllm/config/lora.py).
"""

import subprocess
from pathlib import Path

from lorafit.errors import Problem
from lorafit.model.adapters.lora import VLLM_RANKS
from lorafit.serve.engines.engine import (
    Engine,
    Launch,
    Plan,
    program,
    python_module,
    remark_on_quantised,
    server_arguments,
)

# On CPUs vLLM 0.32 computes rows of the base that share a batch with adapters by the adapter in the
# last place (index -1): one that stays empty adds nothing.
_SPARE = 1
_MODULE = "vllm.entrypoints.openai.api_server"


def _find() -> list[str] | None:
    found = python_module("vllm", _MODULE)
    if found is not None:
        return [*found, "--model"]
    found = program("vllm")
    if found is None:
        return None
    # The program asks for a distribution called vllm, which builds for CPUs are not.
    beside = Path(found[0]).resolve().with_name("python")
    if beside.exists() and _has_vllm(beside):
        return [str(beside), "-m", _MODULE, "--model"]
    return [*found, "serve"]


def _has_vllm(python: Path) -> bool:
    asked = "import importlib.util, sys; sys.exit(importlib.util.find_spec('vllm') is None)"
    return subprocess.run([str(python), "-c", asked], check=False).returncode == 0


def _refuse(plan: Plan) -> list[Problem]:
    return [Problem(f"has rank {adapter.rank}, and vLLM takes {VLLM_RANKS[-1]} at most",
                    adapter.name, "cut it: lorafit inspect RUN --rank 512 -o DIR")
            for adapter in plan.adapters if adapter.rank > VLLM_RANKS[-1]]


def _launch(start: list[str], plan: Plan) -> Launch:
    rank = max(adapter.rank for adapter in plan.adapters)
    command = [*start, plan.base, *server_arguments(plan), "--enable-lora",
               "--max-lora-rank", str(next(each for each in VLLM_RANKS if each >= rank)),
               "--max-loras", str(len(plan.adapters) + plan.on_cpu * _SPARE), "--lora-modules",
               *(f"{adapter.name}={adapter.directory}" for adapter in plan.adapters)]
    return Launch([*command, *plan.extra],
                  {"VLLM_API_KEY": plan.api_key} if plan.api_key else {},
                  remark_on_quantised(plan))


VLLM = Engine(
    "vllm", "vllm",
    "install vLLM into this environment, or put its `vllm` on PATH (https://docs.vllm.ai)",
    _find, _refuse, _launch)

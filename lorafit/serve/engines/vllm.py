"""vLLM: `vllm serve` with `--enable-lora`. Each adapter is a model of its own name.

Arguments as vLLM documents them (docs.vllm.ai, "LoRA Adapters"; vllm/config/lora.py).
"""

import subprocess
from pathlib import Path

from lorafit.errors import Problem
from lorafit.serve.engines.engine import (
    Engine,
    Launch,
    Plan,
    dtype_arguments,
    program,
    python_module,
    remark_on_quantised,
)

# What --max-lora-rank takes (vllm/config/lora.py: MaxLoRARanks); newer versions take 1 too.
MAX_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
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
    return [Problem(f"has rank {adapter.rank}, and vLLM takes {MAX_RANKS[-1]} at most",
                    adapter.name, "cut it: lorafit inspect RUN --rank 512 -o DIR")
            for adapter in plan.adapters if adapter.rank > MAX_RANKS[-1]]


def _launch(start: list[str], plan: Plan) -> Launch:
    rank = max(adapter.rank for adapter in plan.adapters)
    command = [*start, plan.base, "--served-model-name", plan.base_name,
               "--host", plan.host, "--port", str(plan.port), *dtype_arguments(plan)]
    if plan.revision:
        command += ["--revision", plan.revision]
    if plan.trust_remote_code:
        command.append("--trust-remote-code")
    command += ["--enable-lora",
                "--max-lora-rank", str(next(each for each in MAX_RANKS if each >= rank)),
                "--max-loras", str(len(plan.adapters) + plan.on_cpu * _SPARE)]
    if plan.template is not None:
        command += ["--chat-template", str(plan.template)]
    command += ["--lora-modules",
                *(f"{adapter.name}={adapter.directory}" for adapter in plan.adapters)]
    return Launch([*command, *plan.extra],
                  {"VLLM_API_KEY": plan.api_key} if plan.api_key else {},
                  remark_on_quantised(plan))


VLLM = Engine(
    "vllm", "vllm",
    "install vLLM into this environment, or put its `vllm` on PATH (https://docs.vllm.ai)",
    _find, _refuse, _launch)

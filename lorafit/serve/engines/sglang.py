"""SGLang: `sglang.launch_server` with `--lora-paths`. An adapter is the model `BASE:NAME`.

Arguments as SGLang documents them (docs.sglang.io, "LoRA Serving").
"""

from lorafit.errors import Problem
from lorafit.serve.engines.engine import (
    Engine,
    Launch,
    Plan,
    program,
    python_module,
    remark_on_quantised,
    server_arguments,
)


def _find() -> list[str] | None:
    found = python_module("sglang", "sglang.launch_server")
    if found is not None:
        return found
    found = program("sglang")
    return None if found is None else [*found, "serve"]


def _refuse(plan: Plan) -> list[Problem]:
    return []


def _launch(start: list[str], plan: Plan) -> Launch:
    command = [*start, "--model-path", plan.base, *server_arguments(plan), "--enable-lora",
               "--max-lora-rank", str(max(adapter.rank for adapter in plan.adapters)),
               "--max-loras-per-batch", str(len(plan.adapters) + 1)]  # the base takes a place
    if plan.api_key:
        command += ["--api-key", plan.api_key]
    command += ["--lora-paths",
                *(f"{adapter.name}={adapter.directory}" for adapter in plan.adapters)]
    names = ", ".join(f"{plan.base_name}:{adapter.name}" for adapter in plan.adapters)
    remarks = [*remark_on_quantised(plan), f"an adapter is asked for as {names}"]
    if plan.api_key:
        remarks.append("SGLang takes the key on its command line, which users of this machine see")
    return Launch([*command, *plan.extra], {}, remarks)


SGLANG = Engine(
    "sglang", "sglang",
    "install SGLang into this environment (https://docs.sglang.io)", _find, _refuse, _launch)

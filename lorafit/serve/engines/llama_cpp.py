"""llama.cpp: `llama-server` with `--lora`. Adapters are numbered; a request names them by number.

Arguments as llama.cpp documents them (tools/server/README.md).
"""

from pathlib import Path

from lorafit.errors import Problem
from lorafit.serve.engines.engine import Engine, Launch, Placed, Plan, program


def _find() -> list[str] | None:
    return program("llama-server")


def _refuse(plan: Plan) -> list[Problem]:
    if plan.gguf is None:
        return [Problem("llama.cpp needs the base as a GGUF file", "--engine",
                        "give it with --gguf FILE")]
    if not plan.gguf.is_file():
        return [Problem("no such file", str(plan.gguf), "give the base as a GGUF file")]
    return []


def _launch(start: list[str], plan: Plan) -> Launch:
    command = [*start, "--model", str(plan.gguf), "--alias", plan.base_name,
               "--host", plan.host, "--port", str(plan.port)]
    for adapter in plan.adapters:
        command += ["--lora", str(_file(adapter))]
    remarks = [f"the base is {plan.gguf}, whatever the adapters name"]
    if len(plan.adapters) > 1:
        # Otherwise all of them are added at once.
        command.append("--lora-init-without-apply")
        numbers = ", ".join(f"{adapter.name} {number}"
                            for number, adapter in enumerate(plan.adapters))
        remarks.append('a request names its adapter by number, "lora": [{"id": 0, "scale": 1}]: '
                       f"{numbers}; without, the base answers")
    if plan.template is not None:
        command += ["--jinja", "--chat-template-file", str(plan.template)]
    return Launch([*command, *plan.extra],
                  {"LLAMA_API_KEY": plan.api_key} if plan.api_key else {}, remarks)


def _file(adapter: Placed) -> Path:
    """The GGUF file in an exported adapter's directory."""
    found = sorted(adapter.directory.glob("*.gguf"))
    return found[0] if found else adapter.directory / "adapter.gguf"


LLAMA_CPP = Engine(
    "llama.cpp", "gguf",
    "install llama.cpp, so that llama-server is on PATH (https://github.com/ggml-org/llama.cpp)",
    _find, _refuse, _launch)

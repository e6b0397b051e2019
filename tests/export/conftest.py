"""Real adapters, trained once, and what plain peft makes of any adapter."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

# Names of the runs that several tests share, and what differs between them.
_ADAPTERS: dict[str, dict[str, Any]] = {
    "plain": {"rank": 4, "alpha": 8},
    "nf4": {"rank": 4, "alpha": 8},  # on a base in nf4
    "other": {"rank": 4, "alpha": 8},
    "rslora": {"rank": 8, "alpha": 8, "rslora": True},
    "by_layer": {"rank": 4, "alpha": 8, "rank_pattern": {"q_proj": 2},
                 "alpha_pattern": {"v_proj": 3}},
    "patterns": {"rank": 4, "alpha": 8, "target_modules": ["q_proj", "v_proj", "embed_tokens"],
                 "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}},
    "dora": {"rank": 4, "alpha": 8, "dora": True},
    "saved": {"rank": 4, "alpha": 8, "target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "layers": {"rank": 2, "alpha": 8, "target_modules": ["q_proj", "up_proj"],
               "layers": "last:2"},
    "pissa": {"rank": 4, "alpha": 8, "init": "pissa"},
    "ia3": {"method": "ia3"},
    "paca": {"method": "paca", "rank": 4},
    "full": {"method": "full", "layers": "last:1"},
    "prompt_tuning": {"method": "prompt_tuning", "options": {"num_virtual_tokens": 4}},
}


@pytest.fixture(scope="session")
def run_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The run directory of one of the adapters above, trained on sums when first asked for."""
    from lorafit.recipe.schema import Recipe
    from lorafit.train.run import train

    folder = tmp_path_factory.mktemp("runs")

    def rows(name: str, first: int, count: int) -> str:
        path = folder / name
        path.write_text("".join(
            json.dumps({"prompt": f"How much is {n} and {n}?", "completion": f"It is {2 * n}."})
            + "\n" for n in range(first, first + count)), encoding="utf-8")
        return str(path)

    def trained(name: str) -> Path:
        run = folder / name
        if not run.exists():
            train(Recipe.model_validate({
                "model": {"base": "tiny", "dtype": "float32",
                          "quantization": "nf4" if name == "nf4" else "none"},
                "adapter": _ADAPTERS[name],
                "data": {"train": rows(f"{name}.jsonl", 50 if name == "other" else 0, 8),
                         "eval": rows("eval.jsonl", 100, 4)},
                "training": {"steps": 4, "batch_size": 4, "learning_rate": 5e-3, "keep": "last",
                             "eval_every": 4, "seed": len(name)},
                "output": {"dir": str(run)},
            }), resume=False, announce=lambda record: None, started_s=time.perf_counter())
        return run

    return trained


@pytest.fixture(scope="session")
def plain() -> "PlainPeft":
    return PlainPeft()


class PlainPeft:
    """What transformers and peft alone compute from a base and an adapter."""

    def model(self, base: str | Path, adapter: Path | None = None) -> Any:
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        return (PeftModel.from_pretrained(model, adapter) if adapter else model).eval()

    def deltas(self, base: str | Path, adapter: Path) -> dict[str, torch.Tensor]:
        """The dense ΔW of every LoRA layer, by its name in the base."""
        found = {}
        for name, layer in self.layers(base, adapter).items():
            found[name] = layer.get_delta_weight("default").detach()
        return found

    def layers(self, base: str | Path, adapter: Path) -> dict[str, Any]:
        from peft.tuners.lora import LoraLayer

        layers = {}
        for name, module in self.model(base, adapter).named_modules():
            if isinstance(module, LoraLayer):
                plain = name.removeprefix("base_model.model.").replace(".base_layer", "")
                parameter = getattr(module, "parameter_name", "")
                layers[f"{plain}.{parameter}".rstrip(".")] = module
        return layers

    def logits(self, base: str | Path, adapter: Path | None = None) -> torch.Tensor:
        with torch.inference_mode():
            return self.model(base, adapter)(input_ids=torch.arange(5, 60)[None]).logits

"""What several rooms' tests share: small data, small models, and a run from recipe to result."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# The same examples in every run, so that a change that is green stays green. To look for new ones:
# HYPOTHESIS_PROFILE=default make test
# No deadline: how long an example takes says something of the machine, nothing of the code.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))

if "PYTEST_XDIST_WORKER" in os.environ:  # threads of two processes on the same cores only wait
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["LORAFIT_DEVICE"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"

REPOSITORY = Path(__file__).parent.parent
GSM8K = REPOSITORY.parent / "shared" / "data" / "gsm8k"
HH_RLHF = REPOSITORY.parent / "shared" / "data" / "hh-rlhf" / "harmless-base-test.jsonl.gz"


@pytest.fixture(autouse=True, scope="session")
def _quiet_libraries() -> None:
    from lorafit import libraries

    libraries.settle(needs_hub=False)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests share a cache of tokenised rows, and leave the user's alone."""
    os.environ["LORAFIT_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def gsm8k() -> Path:
    """The folder with the real GSM8K, where it is at hand."""
    if not (GSM8K / "train.jsonl").exists():
        pytest.skip("GSM8K is not beside the repository")
    return GSM8K


@pytest.fixture
def hh_rlhf() -> Path:
    """The real HH-RLHF test split, where it is at hand."""
    if not HH_RLHF.exists():
        pytest.skip("HH-RLHF is not beside the repository")
    return HH_RLHF


@pytest.fixture
def chat_file(tmp_path: Path) -> Callable[..., Path]:
    """Writes chat rows of different lengths: sums, asked and answered."""

    def write(rows: int = 12, name: str = "train.jsonl", first: int = 0) -> Path:
        path = tmp_path / name
        path.write_text("".join(
            json.dumps({"messages": [
                {"role": "user", "content": f"How much is {n} and {n + 1}?" + " Please." * (n % 4)},
                {"role": "assistant", "content": f"It is {2 * n + 1}." + " Yes." * (n % 3)},
            ]}) + "\n" for n in range(first, first + rows)
        ), encoding="utf-8")
        return path

    return write


@pytest.fixture
def make_recipe(tmp_path: Path, chat_file: Callable[..., Path]) -> Callable[..., Any]:
    """A small valid recipe on the embedded base in float32; sections override it."""
    from lorafit.recipe.schema import Recipe

    train = chat_file()
    held_out = chat_file(5, "eval.jsonl", first=100)

    def make(name: str = "run", **sections: dict[str, Any]) -> Recipe:
        values: dict[str, Any] = {
            "model": {"base": "tiny", "dtype": "float32"},
            "adapter": {"rank": 4, "alpha": 8},
            "data": {"train": str(train), "eval": str(held_out)},
            "training": {"steps": 4, "batch_size": 4, "micro_batch_size": 2,
                         "learning_rate": 1e-3, "eval_every": 2, "checkpoint_every": 2},
            "output": {"dir": str(tmp_path / name)},
        }
        for section, changes in sections.items():
            values[section] = {**values[section], **changes}
        return Recipe.model_validate(values)

    return make


def run_training(recipe: Any, *, resume: bool = False) -> Any:
    """Train in this process and return the result."""
    from lorafit.train.run import train

    return train(recipe, resume=resume, announce=lambda record: None,
                 started_s=time.perf_counter())


@pytest.fixture
def train() -> Callable[..., Any]:
    return run_training


def adapter_tensors(run: Any) -> dict[str, Any]:
    """The tensors of a run's result."""
    from safetensors.torch import load_file

    return load_file(Path(run) / "adapter" / "adapter_model.safetensors")


def largest_difference(a: dict[str, Any], b: dict[str, Any]) -> float:
    """Over all tensors of two adapters with the same names."""
    assert a.keys() == b.keys()
    return max(float((a[name].float() - b[name].float()).abs().max()) for name in a)


@pytest.fixture
def shrunken(tmp_path: Path) -> Callable[[str], Path]:
    """A real architecture with two narrow layers of random weights, as a model directory."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from lorafit.model.base import TINY
    from lorafit.smoke import shrink

    def make(model_type: str, **changes: Any) -> Path:
        tokenizer = AutoTokenizer.from_pretrained(TINY)
        config = AutoConfig.for_model(model_type)
        shrink(config, tokenizer)
        for key, value in changes.items():
            setattr(config, key, value)
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        # Random weights of the usual size give logits near zero; larger ones make errors visible.
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(4)
        path = tmp_path / f"base-{model_type}"
        model.save_pretrained(path)
        tokenizer.save_pretrained(path)
        return path

    return make

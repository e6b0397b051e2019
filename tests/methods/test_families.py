"""The main methods on real architectures at small size."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from lorafit.model.adapters.files import load_adapter
from lorafit.recipe.methods import METHODS
from tests.methods.harness import (
    STEPS,
    STOP,
    base,
    base_weights,
    changed,
    commit,
    logits,
    relative,
    resumed,
    saved,
    section_of,
    trainee,
)

MAIN: dict[str, dict[str, Any]] = {
    "lora": {}, "dora": {"method": "lora", "dora": True},
    "rslora": {"method": "lora", "rslora": True},
    **{name: {} for name in ("adalora", "vera", "ia3", "oft", "miss", "lokr", "ln_tuning",
                             "prompt_tuning", "randlora")},
}
# Fused experts are no linear layers: these methods adapt the attention of a mixture.
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]


@pytest.mark.long
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text", "qwen3_moe"])
@pytest.mark.parametrize("name", MAIN)
def test_a_main_method_on_a_family(name: str, family: str, tmp_path: Path, shrunken: Any) -> None:
    keys = dict(MAIN[name])
    method = keys.pop("method", name)
    if family == "qwen3_moe" and METHODS[method].where == "linear" and name != "lora":
        keys["target_modules"] = ATTENTION
    if name in ("adalora", "miss", "randlora", "vera"):
        keys["rank"] = 4  # the layers are 32 to 128 wide
    section = section_of(method, **keys)
    path = str(shrunken(family))
    before = base_weights(base("float32", path))
    it = trainee(section, path=path, rate=5e-3)
    it.train(STOP)
    checkpoint = commit(it, tmp_path / "run")
    it.train(STEPS)
    assert it.losses[-1] < it.losses[0]
    assert changed(before, it.adapted) == set()
    other = resumed(section, checkpoint, path=path, rate=5e-3).train(STEPS)
    mine, theirs = it.everything(), other.everything()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    file = saved(it, tmp_path / "adapter")
    reference = logits(it.adapted)
    assert torch.equal(logits(load_adapter(base("float32", path), file)), reference)
    assert torch.equal(
        logits(PeftModel.from_pretrained(base("float32", path), str(file)).eval()), reference)
    if METHODS[method].merges:
        merged = load_adapter(base("float32", path), file).merge_and_unload()
        assert relative(logits(merged), reference) < 1e-5

"""An adapter that cannot work is refused by `check`: the reason, and what works instead."""

from collections.abc import Callable
from pathlib import Path

import pytest

from lorafit.cli import main as cli
from tests.cli.test_bad_input import RECIPE, ROWS

Check = Callable[..., str]


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
          capsys: pytest.CaptureFixture[str]) -> Check:
    """What `lorafit check` says, in this process, of a recipe that it must refuse."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text(ROWS)
    (tmp_path / "r.yaml").write_text(RECIPE)

    def refused(*keys: str) -> str:
        monkeypatch.setattr("sys.argv", ["lorafit", "check", "r.yaml",
                                         *(f"--set={key}" for key in keys)])
        assert cli._run() == 2
        return capsys.readouterr().err

    return refused


@pytest.mark.parametrize(("keys", "said"), [
    pytest.param(["adapter.method=vear"], ["adapter.method", "did you mean vera?"], id="a typo"),
    pytest.param(["adapter.method=poly"], ["poly is not offered", "number of a task"],
                 id="a method that rows of text cannot feed"),
    pytest.param(["adapter.method=vera", "adapter.rslora=true"],
                 ["method vera has no rslora", "lora does", "leave it out"],
                 id="a key of another method"),
    pytest.param(["adapter.method=ia3"], ["method ia3 has no rank", "leave it out"],
                 id="a rank that the method does not have"),
    pytest.param(["adapter.method=lora", "adapter.options={d_inital: 0.1}"],
                 ["adapter.options.d_inital", "lora has no option d_inital"],
                 id="an option of another method"),
    pytest.param(["adapter.method=vera", "adapter.rank=64", "adapter.options={d_inital: 0.1}"],
                 ["adapter.options.d_inital", "did you mean d_initial?"],
                 id="a misspelt option"),
    pytest.param(["adapter.method=vera", "adapter.options={r: 8}"],
                 ["adapter.options.r", "use adapter.rank"], id="an option with a key of its own"),
    pytest.param(["adapter.rank=4096"], ["rank 4096 is above the smaller side", "use at most"],
                 id="a rank above the smallest dimension"),
    pytest.param(["adapter.method=hra", "model.quantization=nf4"],
                 ["hra cannot be trained on a base in nf4", "use lora"], id="hra on 4 bits"),
    pytest.param(["adapter.method=delora", "model.quantization=int8"],
                 ["delora cannot be trained on a base in int8", "use lora"], id="delora on 8 bits"),
    pytest.param(["adapter.method=loha", "model.quantization=fp4"],
                 ["loha cannot be trained on a base in fp4", "use lora"], id="loha on 4 bits"),
    pytest.param(["adapter.method=full", "adapter.rank=null", "model.quantization=nf4"],
                 ["full cannot be trained on a base in nf4", "quantization: none"],
                 id="the weights themselves, on 4 bits"),
    pytest.param(["adapter.init=eva", "data.streaming=true"],
                 ["init eva looks at training rows", "streaming"], id="EVA without rows"),
    pytest.param(["adapter.init=loftq"], ["loftq makes up for what 4 bits lose"],
                 id="LoftQ without 4 bits"),
    pytest.param(["adapter.init=pissa", "adapter.dora=true"], ["dora with init pissa"],
                 id="DoRA on a start that alters the base"),
    pytest.param(["adapter.method=prompt_tuning", "adapter.rank=null", "training.batching=packed"],
                 ["puts several sequences", "use padded"], id="virtual tokens in packed rows"),
    pytest.param(["adapter.method=vera", "adapter.rank=64", "training.lora_plus_ratio=16"],
                 ["lora_plus_ratio", "vera does not have"], id="LoRA+ without LoRA"),
    pytest.param(["adapter.target_modules=[q_prjo]"], ["q_prjo matches no layer", "q_proj"],
                 id="a layer that is not there"),
    pytest.param(["adapter.layers=last:99"], ["layers, fewer than 99"],
                 id="more layers than there are"),
])
def test_an_adapter_that_cannot_work_is_refused_before_it_is_loaded(
    check: Check, keys: list[str], said: list[str],
) -> None:
    if any(key.startswith("adapter.method=") for key in keys) \
            and not any(key.startswith("adapter.rank=") for key in keys) \
            and "adapter.method=ia3" not in keys:
        keys = [*keys, "adapter.rank=null"]
    if "data.streaming=true" in keys:
        keys = [*keys, "training.steps=1"]
    message = check(*keys)
    for words in said:
        assert words in message, message


@pytest.mark.parametrize("method", ["adamss", "frod", "shira"])
def test_a_size_that_follows_from_the_weights_is_left_open(
    check: Check, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], method: str,
) -> None:
    if method == "adamss":
        pytest.importorskip("sklearn")
    monkeypatch.setattr("sys.argv", ["lorafit", "check", "r.yaml", f"--set=adapter.method={method}",
                                     "--set=adapter.rank=null"])
    assert cli._run() == 0
    assert "counted when they are loaded" in capsys.readouterr().out


@pytest.mark.parametrize(("key", "said"), [
    ("adapter.dropout=0.1", "dropout cannot be applied to fused expert weights"),
    ("adapter.dora=true", "DoRA cannot be applied to fused expert weights"),
    ("adapter.init=pissa", "init pissa cannot start fused expert weights"),
])
def test_what_fused_experts_cannot_have_is_refused(
    check: Check, shrunken: Callable[[str], Path], key: str, said: str,
) -> None:
    message = check(f"model.base={shrunken('qwen3_moe')}", key)
    assert said in message
    assert "target_modules" in message  # the nearest thing that works

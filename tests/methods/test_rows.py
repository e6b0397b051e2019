"""The table of methods against peft's own configurations, and what is refused before training."""

import dataclasses
import datetime
from typing import Any

import peft
import pytest
import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from transformers import AutoConfig

from lorafit.errors import UserError
from lorafit.model.adapters import peft_config
from lorafit.model.adapters.add import add_adapter, refuse_misfit
from lorafit.model.base import TINY, load_config, meta_model
from lorafit.recipe.adapter import Adapter
from lorafit.recipe.methods import METHODS, NOT_OFFERED
from lorafit.recipe.schema import Model
from tests.methods.harness import base, batches, relative, section_of

OF_PEFT = {name: row for name, row in METHODS.items() if row.config}
INSTALLED = {name: row for name, row in OF_PEFT.items() if hasattr(peft, row.config)}


def tiny() -> Any:
    return meta_model(load_config(Model(base="tiny")))


def fields_of(name: str) -> dict[str, Any]:
    return {item.name: item for item in dataclasses.fields(getattr(peft, METHODS[name].config))}


def test_every_method_of_peft_is_offered_or_named_with_the_reason_why_not() -> None:
    offered = {row.config for row in OF_PEFT.values()}
    left_out = {kind.value.lower(): config.__name__
                for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()
                if config.__name__ not in offered}
    assert set(left_out) <= set(NOT_OFFERED)
    assert not set(NOT_OFFERED) & set(METHODS)


def test_lily_is_left_out_because_rows_in_a_batch_change_each_other() -> None:
    """When this fails, peft has mended it, and the method can be offered."""
    adapted = peft.get_peft_model(base(), peft.LilyConfig(
        r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator))
        ids = batches()[0].input_ids
        among = adapted(input_ids=ids, use_cache=False).logits[:1]
        alone = adapted(input_ids=ids[:1], use_cache=False).logits
    assert relative(among, alone) > 1e-3


@pytest.mark.parametrize("name", INSTALLED)
def test_a_row_names_fields_that_peft_has(name: str) -> None:
    row, known = METHODS[name], fields_of(name)
    assert {*row.fields.values(), *row.preset, *row.unused} <= set(known)
    assert set(row.fields) <= set(Adapter.model_fields)
    assert set(row.defaults) <= row.keys


@pytest.mark.parametrize("name", INSTALLED)
def test_the_least_recipe_makes_a_configuration(name: str) -> None:
    if (package := METHODS[name].needs_package) is not None:
        pytest.importorskip(package[0])
    refuse_misfit(tiny(), section_of(name))


def test_a_method_that_the_installed_peft_does_not_have_is_refused(
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(peft, "VeraConfig")
    with pytest.raises(UserError, match=r"not in the installed peft (.|\n)*upgrade"):
        refuse_misfit(tiny(), section_of("vera"))


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peft_config.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"scikit-learn(.|\n)*pip install scikit-learn"):
        refuse_misfit(tiny(), section_of("adamss"))


@pytest.mark.parametrize(("method", "options", "message"), [
    ("oft", {"oft_blok_size": 16}, "did you mean oft_block_size"),
    ("oft", {"nothing_of_the_kind": 1}, "its options: "),
    ("lora", {"r": 8}, "use adapter.rank"),
    ("lora", {"lora_alpha": 8}, "use adapter.alpha"),
    ("vera", {"target_modules": ["q_proj"]}, "use adapter.target_modules"),
    ("vera", {"task_type": "CAUSAL_LM"}, "follows from the model"),
    ("shadow", {"auxiliary_loss_weight": 0.1}, "has no effect"),
    ("fourierft", {"n_frequency": "many"}, "n_frequency: 'many' does not fit"),
    ("fourierft", {"scaling": [1]}, "scaling: .* does not fit"),
    ("fourierft", {"scaling": float("nan")}, "cannot be written"),
    ("oft", {"coft": "yes"}, "does not fit"),
    ("lora", {"megatron_core": datetime.date(2026, 1, 1)}, "cannot be written"),
    ("waveft", {"wavelet_family": 3}, "does not fit"),
    ("trainable_tokens", {"token_indices": [4096]}, "no token 4096; the vocabulary has 0 to 4095"),
    ("trainable_tokens", {"token_indices": [-1]}, "no token -1"),
    ("trainable_tokens", {"token_indices": []}, "trains nothing without it"),
    ("lora", {"trainable_token_indices": [9999]}, "no token 9999"),
    ("c3a", {"block_size": 96}, "block_size: 96 does not divide(.|\n)*use 64"),
    ("vblora", {"vector_length": 256}, "vector_length: 256 does not divide(.|\n)*use 128"),
    ("oft", {"oft_block_size": 48}, "oft_block_size: 48 does not divide(.|\n)*use 32"),
    ("boft", {"boft_block_size": 6}, "boft_block_size: 6 does not divide(.|\n)*use 4"),
    ("road", {"group_size": 48}, "group_size: 48 does not divide(.|\n)*use 32"),
    ("gralora", {"gralora_k": 3}, "gralora_k: 3 does not divide(.|\n)*use 2"),
    ("adalora", {"init_r": 8}, "none can move"),
])
def test_an_option_that_cannot_be_meant_is_refused_before_weights_are_loaded(
        method: str, options: dict[str, Any], message: str) -> None:
    section = Adapter.model_validate({"method": method, "options": options})
    with pytest.raises(UserError, match=message):
        refuse_misfit(tiny(), section)


def test_what_a_method_cannot_do_without_is_asked_for() -> None:
    with pytest.raises(UserError, match="token_indices: method trainable_tokens trains nothing"):
        refuse_misfit(tiny(), Adapter(method="trainable_tokens"))


def test_all_wrong_options_are_reported_at_once() -> None:
    with pytest.raises(UserError) as caught:
        refuse_misfit(tiny(), Adapter(method="oft", options={"coft": 3, "epz": 1e-5}))
    assert len(caught.value.problems) == 2


def test_options_reach_peft() -> None:
    adapted = add_adapter(tiny(), Adapter(method="oft", options={"oft_block_size": 16}), 0, "tiny")
    assert adapted.peft_config["default"].oft_block_size == 16


@pytest.mark.parametrize(("method", "option", "size"), [
    ("c3a", "block_size", 128), ("vblora", "vector_length", 128), ("oft", "oft_block_size", 32),
    ("road", "group_size", 64), ("boft", "boft_block_size", 4), ("gralora", "gralora_k", 2),
])
def test_a_block_size_that_is_left_out_fits_every_layer(
        method: str, option: str, size: int) -> None:
    """The layers of the embedded base are 128, 256 and 640 wide."""
    adapted = add_adapter(tiny(), section_of(method), 0, "tiny")
    assert getattr(adapted.peft_config["default"], option) == size


def test_llama_adapter_names_the_families_that_it_exists_for() -> None:
    config = AutoConfig.for_model("qwen3", hidden_size=64, num_hidden_layers=2,
                                  num_attention_heads=4, num_key_value_heads=2,
                                  intermediate_size=64, vocab_size=64)
    with pytest.raises(UserError, match="exists for llama, mistral"):
        refuse_misfit(meta_model(config), section_of("llama_adapter"))


def test_shadow_takes_layers_that_lie_side_by_side() -> None:
    with pytest.raises(UserError, match="side by side"):
        refuse_misfit(tiny(), Adapter(method="shadow", layers=[0, 2]))
    refuse_misfit(tiny(), Adapter(method="shadow", layers="last:2"))


def test_a_text_to_start_a_prompt_from_is_read_with_the_base_s_tokenizer() -> None:
    section = Adapter(method="prompt_tuning", options={
        "prompt_tuning_init_text": "Answer briefly", "num_virtual_tokens": 4})
    config = add_adapter(base(), section, 0, "tiny").peft_config["default"]
    assert config.tokenizer_name_or_path == str(TINY)
    assert config.prompt_tuning_init == "TEXT"


@pytest.mark.parametrize("name", [name for name, row in METHODS.items() if row.needs_weights])
def test_what_follows_from_the_weights_is_not_guessed_without_them(name: str) -> None:
    if (package := METHODS[name].needs_package) is not None:
        pytest.importorskip(package[0])
    with pytest.raises(UserError, match="follows from the base's weights"):
        add_adapter(tiny(), section_of(name), 0, "tiny")


def test_every_method_says_what_it_does() -> None:
    for name, row in METHODS.items():
        assert row.summary, name
        assert bool(row.config) != row.is_own

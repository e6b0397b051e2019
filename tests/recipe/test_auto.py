"""What `auto` means, as pure functions of facts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorafit.recipe import auto
from lorafit.recipe.auto import IN_RECIPE, Device

CPU = Device("cpu", "a CPU", has_bfloat16=False)
CPU_BF16 = Device("cpu", "a newer CPU", has_bfloat16=True)
OLD_GPU = Device("cuda", "a V100", has_bfloat16=False)
GPU = Device("cuda", "an H200", has_bfloat16=True, has_flash_attention=True)


@pytest.mark.parametrize(("model_type", "hidden_size", "rate"), [
    ("llama", 2048, 4.9e-4),  # Llama-3.2-1B
    ("llama", 4096, 2.9e-4),  # Llama-3.1-8B
    ("qwen3", 4096, 4.7e-4),  # Qwen3-8B
])
def test_the_learning_rate_rule_gives_its_published_values(
    model_type: str, hidden_size: int, rate: float,
) -> None:
    decision = auto.learning_rate("auto", model_type, hidden_size)
    assert decision.value == rate
    assert decision.key == "training.learning_rate"
    assert str(hidden_size) in decision.reason


@pytest.mark.parametrize("model_type", ["gemma3_text", "mistral", "gpt2", "phi3"])
def test_a_family_the_rule_was_not_fitted_for_says_so(model_type: str) -> None:
    decision = auto.learning_rate("auto", model_type, 4096)
    assert decision.value == 5e-4
    assert "fitted for Llama and Qwen only" in decision.reason
    assert model_type in decision.reason


def test_an_unknown_width_falls_back_to_the_plain_rate() -> None:
    assert auto.learning_rate("auto", "llama", None).value == 5e-4


@pytest.mark.parametrize(("model_type", "hidden_size"), [("llama", 4096), ("gemma2", 2304)])
def test_full_fine_tuning_gets_a_tenth_of_loras_rate(model_type: str, hidden_size: int) -> None:
    full = auto.learning_rate("auto", model_type, hidden_size, "full")
    assert full.value == pytest.approx(
        auto.learning_rate("auto", model_type, hidden_size).value / 10)
    assert full.reason.startswith("full fine-tuning's 5e-5")


def test_another_methods_rate_is_loras_and_said_not_to_be_fitted_for_it() -> None:
    for method in ("paca", "vera", "bottleneck"):
        decision = auto.learning_rate("auto", "llama", 4096, method)
        assert decision.value == auto.learning_rate("auto", "llama", 4096).value
        assert f"not fitted for {method}" in decision.reason
    assert "not fitted" not in auto.learning_rate("auto", "llama", 4096, "lora").reason


@given(st.integers(64, 32_768), st.integers(64, 32_768))
def test_a_wider_model_never_gets_a_higher_rate(a: int, b: int) -> None:
    narrow, wide = sorted((a, b))
    for family in ("llama", "qwen2"):
        assert (auto.learning_rate("auto", family, narrow).value
                >= auto.learning_rate("auto", family, wide).value)


def test_what_the_recipe_sets_is_kept_and_said_to_be_set() -> None:
    for decision, value in (
        (auto.learning_rate(3e-5, "llama", 2048), 3e-5),
        (auto.dtype("float16", CPU), "float16"),
        (auto.attention("eager", GPU, "bfloat16", True), "eager"),
        (auto.micro_batch_size(3, 16, 1, 100, 1000, 768, CPU), 3),
        (auto.eval_every(7, 100), 7),
        (auto.checkpoint_every(9, 10), 9),
    ):
        assert decision.value == value
        assert decision.reason == IN_RECIPE


@pytest.mark.parametrize(("device", "dtype"), [
    (GPU, "bfloat16"), (CPU_BF16, "bfloat16"), (OLD_GPU, "float16"), (CPU, "float32"),
    (Device("mps", "a laptop", has_bfloat16=False), "float32"),
])
def test_the_number_format_is_what_the_device_computes_in(device: Device, dtype: str) -> None:
    decision = auto.dtype("auto", device)
    assert decision.value == dtype
    assert device.name in decision.reason


@pytest.mark.parametrize(("device", "dtype", "sdpa", "chosen"), [
    (GPU, "bfloat16", True, "flash_attention_2"),
    (GPU, "float32", True, "sdpa"),  # FlashAttention has no float32
    (OLD_GPU, "float16", True, "sdpa"),
    (CPU, "float32", True, "sdpa"),
    (CPU, "float32", False, "eager"),
])
def test_attention_is_the_fastest_that_applies(
    device: Device, dtype: str, sdpa: bool, chosen: str,
) -> None:
    assert auto.attention("auto", device, dtype, sdpa).value == chosen


@pytest.mark.parametrize(("attention", "takes_documents", "chosen"), [
    ("flash_attention_2", True, "padding_free"),
    ("flash_attention_2", False, "padding_free"),
    ("sdpa", True, "padding_free"),
    ("sdpa", False, "padded"),
    ("eager", True, "padded"),
    ("flex_attention", True, "padded"),
])
def test_sequences_stand_end_to_end_where_attention_takes_them_so(
    attention: str, takes_documents: bool, chosen: str,
) -> None:
    decision = auto.batching("auto", attention, takes_documents=takes_documents)
    assert (decision.key, decision.value) == ("training.batching", chosen)
    decision = auto.batching("auto", attention, takes_documents=True, keeps_rows_apart=False)
    assert decision.value == "padded"
    for setting in ("padded", "padding_free", "packed"):
        decision = auto.batching(setting, attention, takes_documents=takes_documents)
        assert (decision.value, decision.reason) == (setting, IN_RECIPE)


def test_a_row_counts_for_what_it_makes_a_micro_batch_hold() -> None:
    for device in (CPU, GPU):
        assert auto.row_tokens("padded", 300, 120.4, 2048, device) == 300
        assert auto.row_tokens("packed", 300, 120.4, 2048, device) == 2048
    assert auto.row_tokens("padding_free", 300, 120.4, 2048, CPU) == 120
    assert auto.row_tokens("padding_free", 300, 120.4, 2048, GPU) == 300


@given(batch=st.integers(1, 512), ranks=st.integers(1, 8), longest=st.integers(1, 100_000),
       vocabulary=st.integers(256, 300_000), hidden=st.none() | st.integers(16, 16_384),
       memory_bytes=st.integers(2**30, 2**38))
def test_a_micro_batch_is_no_larger_than_the_ranks_share_nor_than_the_device_holds(
    batch: int, ranks: int, longest: int, vocabulary: int, hidden: int | None, memory_bytes: int,
) -> None:
    gpu = Device("cuda", "a GPU", has_bfloat16=True, memory_bytes=memory_bytes)
    for device in (gpu, CPU):
        size = auto.micro_batch_size("auto", batch, ranks, longest, vocabulary, hidden,
                                     device).value
        assert 1 <= size <= -(-batch // ranks)
        logits_bytes = 12 * vocabulary * size * longest
        if device is gpu:
            assert size == 1 or logits_bytes <= memory_bytes / 8 or size * longest <= 512
        else:
            assert size == 1 or size * longest <= 2048
            assert size == 1 or size * longest <= 512 or size * longest * (hidden or 1) <= 2**19


def test_more_memory_never_means_a_smaller_micro_batch() -> None:
    sizes = [
        auto.micro_batch_size("auto", 256, 1, 512, 128_256, 4096, Device(
            "cuda", "a GPU", has_bfloat16=True, memory_bytes=gib * 2**30)).value
        for gib in (8, 24, 40, 80, 141)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]


@given(epochs=st.floats(0.01, 10), rows=st.integers(1, 10_000), batch=st.integers(1, 64))
def test_epochs_count_rows_and_steps_count_batches(epochs: float, rows: int, batch: int) -> None:
    assert auto.total_rows(None, 5, batch, rows) == 5 * batch
    assert auto.total_rows(None, None, batch, rows) == rows
    assert auto.total_rows(epochs, None, batch, rows) == max(1, round(epochs * rows))


@given(st.integers(1, 100_000))
def test_a_run_is_evaluated_at_most_ten_times(total_steps: int) -> None:
    every = auto.eval_every(None, total_steps).value
    assert every >= 1
    assert total_steps / every <= 10
    assert auto.checkpoint_every(None, every).value == every

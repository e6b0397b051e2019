"""How `auto` is decided: pure functions from facts to a value with its reason.

The facts (what the device has, how wide the model is) are found by those who can see them; what
follows from them is decided here, in one place, and printed once.
"""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Decision:
    """A value that the recipe left open (or set), and why it is what it is."""

    key: str
    value: Any
    reason: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Device:
    """What matters about the device a rank computes on. `kind` is cuda, mps, xpu or cpu."""

    kind: str
    name: str
    has_bfloat16: bool
    has_flash_attention: bool = False
    memory_bytes: int | None = None


IN_RECIPE = "set in the recipe"

# Exponents of learning rate against hidden size, fitted per family over 14 models by
# tinker-cookbook (hyperparam_utils.get_lr). Other families were not fitted.
_WIDTH_EXPONENT = {"llama": 0.781, "qwen": 0.0775}
_FULL_FINE_TUNING_RATE = 5e-5
_LORA_FACTOR = 10  # LoRA Without Regret: 9.8 fitted over 14 models
FITTED_ALPHA = 32  # at which they were fitted


def learning_rate(setting: float | str, model_type: str, hidden_size: int | None,
                  method: str = "lora") -> Decision:
    """5e-5 × 10 × (2000 / hidden_size)^p, tinker-cookbook's rule for LoRA.

    p = 0.781 for Llama, 0.0775 for Qwen. For any other family the width is left out. Full
    fine-tuning goes without the factor 10; other methods get LoRA's. What the rule was not fitted
    for, the reason says.
    """
    key = "training.learning_rate"
    if setting != "auto":
        return Decision(key, float(setting), IN_RECIPE)
    base, reason = _FULL_FINE_TUNING_RATE, "full fine-tuning's 5e-5"
    if method != "full":
        base, reason = base * _LORA_FACTOR, f"{_LORA_FACTOR} × {reason}"
    remark = "" if method in ("lora", "full") else f"; a rule for LoRA, not fitted for {method}"
    family = next((name for name in _WIDTH_EXPONENT if model_type.startswith(name)), None)
    if family is None or not hidden_size:
        return Decision(key, base, f"{reason}; the adjustment to the width is fitted for Llama "
                        f"and Qwen only, not for {model_type}{remark}")
    exponent = _WIDTH_EXPONENT[family]
    value = base * (2000 / hidden_size) ** exponent
    return Decision(key, float(f"{value:.2g}"), f"{reason} × (2000 / {hidden_size})^{exponent}, "
                    f"the rule fitted for {family.capitalize()}{remark}")


def dtype(setting: str, device: Device) -> Decision:
    """bfloat16 where the device computes in it natively, otherwise what is safe and fast."""
    key = "model.dtype"
    if setting != "auto":
        return Decision(key, setting, IN_RECIPE)
    if device.has_bfloat16:
        return Decision(key, "bfloat16", f"{device.name} computes in it natively")
    if device.kind == "cuda":
        return Decision(key, "float16", f"{device.name} has no native bfloat16")
    if device.kind == "cpu":
        return Decision(key, "float32", f"{device.name} has no matrix tiles (AMX), and without "
                        "them float32 is faster than bfloat16")
    return Decision(key, "float32", f"{device.name} has no native bfloat16, so float32 is faster")


def attention(setting: str, device: Device, dtype_name: str, supports_sdpa: bool) -> Decision:
    """FlashAttention where it is installed and applies, then torch's SDPA, then eager."""
    key = "model.attention"
    if setting != "auto":
        return Decision(key, setting, IN_RECIPE)
    if device.has_flash_attention and dtype_name in ("bfloat16", "float16"):
        return Decision(key, "flash_attention_2", "flash-attn is installed")
    if supports_sdpa:
        return Decision(key, "sdpa", "torch's own fused attention")
    return Decision(key, "eager", "the architecture has no other implementation")


def batching(setting: str, attention_name: str, *, takes_documents: bool,
             keeps_rows_apart: bool = True) -> Decision:
    """End to end where the attention takes sequences so, padded elsewhere.

    FlashAttention is told where each sequence of a row ends, and so is lorafit's own with SDPA
    where the architecture lets attention be replaced (`takes_documents`). The others get a mask
    over the whole row, whose work grows with the row's length squared.
    `keeps_rows_apart`: whether the adapter works with several sequences in a row; virtual tokens
    stand before a row, not before each of its sequences.
    """
    key = "training.batching"
    if setting != "auto":
        return Decision(key, setting, IN_RECIPE)
    if not keeps_rows_apart:
        return Decision(key, "padded", "virtual tokens stand before a row, so it has one sequence")
    if attention_name.startswith("flash_attention"):
        return Decision(key, "padding_free", "FlashAttention is told where sequences end, so no "
                        "padding is computed")
    if attention_name == "sdpa" and takes_documents:
        return Decision(key, "padding_free", "attention is computed for each sequence by itself, "
                        "so no padding is computed")
    return Decision(key, "padded", f"sequences of similar length share a micro-batch; end to end, "
                    f"{attention_name} would compute a mask over all of them")


def row_tokens(batching_name: str, longest_tokens: int, mean_tokens: float, full_row_tokens: int,
               device: Device) -> int:
    """What a row of a micro-batch counts for: its width, which padding makes the longest's.

    Without padding, long and short rows are mixed. On a CPU, whose memory is never the limit here,
    they count at their mean; on an accelerator at the longest one's length all the same.
    """
    if batching_name == "packed":
        return full_row_tokens
    if batching_name == "padding_free" and device.kind == "cpu":
        return max(1, round(mean_tokens))
    return longest_tokens


# Numbers of a hidden state over all tokens of a micro-batch that a CPU computes fastest. At width
# 768 rates are flat from 500 to 900 tokens and a tenth lower at 300 and at 1,300; at width 256 they
# rise up to 2,700 (2 cores, layouts in turn).
_CPU_NUMBERS = 2**19


def micro_batch_size(setting: int | str, batch_size: int, ranks: int, tokens_a_row: int,
                     vocabulary: int, hidden_size: int | None, device: Device) -> Decision:
    """As many rows at once as keep a device busy without filling its memory.

    On an accelerator the logits, the largest tensors of a step, may take an eighth of its memory:
    about 12 bytes a token and entry of the vocabulary (16-bit, 32-bit, and the gradient). On a CPU
    2¹⁹ / hidden_size tokens, between 512 and 2,048: what is too large for its caches is slower
    again. `tokens_a_row` is `row_tokens`; a rank never takes more than its share of the batch.
    """
    key = "training.micro_batch_size"
    if setting != "auto":
        return Decision(key, int(setting), IN_RECIPE)
    budget_tokens = min(2048, max(512, _CPU_NUMBERS // (hidden_size or 1)))
    if device.kind != "cpu" and device.memory_bytes:
        budget_tokens = max(512, device.memory_bytes // 8 // (12 * vocabulary))
    fitting = max(1, budget_tokens // max(1, tokens_a_row))
    share = -(-batch_size // ranks)
    value = min(fitting, share)
    if value == share:
        return Decision(key, value, "the whole batch fits at once")
    return Decision(key, value, f"{value} rows of {tokens_a_row} tokens stay within "
                    f"{budget_tokens} tokens")


# Of a device's memory: the rest is for what allocators and libraries take.
_USABLE_MEMORY = 0.85


def activation_checkpointing(kept_bytes: dict[str, float], held_bytes: int, memory_bytes: int,
                             *, offloads: bool = False) -> Decision:
    """The way that keeps most of the forward pass and fits.

    kept_bytes: by way (none, selective, full, as far as there are), what a micro-batch keeps.
    held_bytes: what is there in any case. memory_bytes: the device's. offloads: what is kept moves
    to the host, and the way is the one that moves least.
    """
    key = "training.activation_checkpointing"
    if offloads and "full" in kept_bytes:
        return Decision(key, "full", "with activation_offloading only layers' inputs move; more "
                        "takes longer to copy than to compute again")
    room = _USABLE_MEMORY * memory_bytes - held_bytes
    ways = {way: kept_bytes[way] for way in ("none", "selective", "full") if way in kept_bytes}
    chosen = next((way for way, kept in ways.items() if kept <= room), list(ways)[-1])

    def gib(size: float) -> str:
        return f"{size / 2**30:.2g}" if size < 2**30 else f"{size / 2**30:.1f}"

    before = list(ways)[: list(ways).index(chosen)]
    reason = f"a micro-batch keeps {gib(ways[chosen])} GiB"
    if before:
        reason += "".join(f", with {way} {gib(ways[way])}" for way in before)
    reason += f"; {gib(max(room, 0))} GiB are there for it"
    return Decision(key, chosen, reason)


# Of a device's memory, for a base that every device holds: activations, logits and the adapter's
# state need the rest.
_BASE_SHARE = 0.6


def strategy(setting: str, ranks: int, neighbours: int, base_bytes: int, memory_bytes: int,
             why_not_sharded: str | None) -> Decision:
    """ddp where a device holds the base with room to train, hsdp where a machine's do, else fsdp.

    neighbours: ranks of a machine. memory_bytes: of a rank.
    """
    key = "strategy"
    if setting != "auto":
        return Decision(key, setting, "set on the command line")
    base, memory = base_bytes / 1e9, memory_bytes / 1e9
    held = f"the base takes {base:,.2g} GB of each rank's {memory:,.3g} GB"
    if base_bytes <= _BASE_SHARE * memory_bytes:
        return Decision(key, "ddp", held)
    if why_not_sharded is not None:
        return Decision(key, "ddp", f"{held}, and cannot be sharded: {why_not_sharded}")
    held = f"{held}, more than {_BASE_SHARE:.0%}"
    is_several = ranks > neighbours and ranks % neighbours == 0
    if is_several and base_bytes <= _BASE_SHARE * memory_bytes * neighbours:
        return Decision(key, "hsdp", f"{held}, so it is cut up among the {neighbours} of each "
                        "machine")
    return Decision(key, "fsdp", f"{held}, so it is cut up among {ranks}")


def total_rows(epochs: float | None, steps: int | None, batch_size: int, rows: int) -> int:
    """Rows that a run trains on, repetitions counted."""
    if steps is not None:
        return steps * batch_size
    return max(1, round((epochs or 1) * rows))


def eval_every(setting: int | None, total_steps: int) -> Decision:
    key = "training.eval_every"
    if setting is not None:
        return Decision(key, setting, IN_RECIPE)
    return Decision(key, max(1, -(-total_steps // 10)), "ten times a run")


def checkpoint_every(setting: int | None, eval_every_steps: int) -> Decision:
    key = "training.checkpoint_every"
    if setting is not None:
        return Decision(key, setting, IN_RECIPE)
    return Decision(key, eval_every_steps, "as often as there is an evaluation")

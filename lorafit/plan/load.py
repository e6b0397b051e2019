"""What a device is given to do: the part of a run that memory and time follow from."""

from dataclasses import dataclass

from lorafit.recipe.adapter import Adapter

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Load:
    """A micro-batch, and how it is computed.

    tokens: computed at once, padding counted. supervised_tokens: of them, with a loss. rows and
    longest_tokens: the sequences among them. device: cuda, mps, xpu or cpu. recomputation: none,
    selective or full. shards: ranks that the weights are cut up among, 1 where each holds all.
    """

    dtype: str
    tokens: int
    supervised_tokens: int
    rows: int = 1
    longest_tokens: int = 0
    device: str = "cpu"
    quantization: str = "none"
    double_quantization: bool = True
    attention: str = "sdpa"
    batching: str = "padding_free"
    recomputation: str = "none"
    optimizer: str = "adamw"
    shards: int = 1

    @property
    def number_bytes(self) -> int:
        """Of a number of the model's dtype."""
        return BYTES[self.dtype]


def is_fast(section: Adapter, quantization: str) -> bool:
    """Whether adapted layers get the form of one function (`model/fast/linear.py`)."""
    return section.method == "lora" and not section.dora and quantization != "int8"

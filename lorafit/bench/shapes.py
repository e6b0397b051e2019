"""Sizes of models that are measured with random weights. Nothing heavy is imported here."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """A Llama. heads, key_heads: of queries, and of keys and values. tied: whether the output head
    is the embeddings."""

    hidden: int
    layers: int
    heads: int
    key_heads: int
    inner: int
    vocabulary: int
    tied: bool


SHAPES = {
    "tiny": Shape(64, 2, 4, 2, 128, 256, True),
    "llama-100m": Shape(768, 12, 12, 12, 2048, 32_000, True),
    "llama-3.2-1b": Shape(2048, 16, 32, 8, 8192, 128_256, True),
    "llama-3.1-8b": Shape(4096, 32, 32, 8, 14_336, 128_256, False),
}

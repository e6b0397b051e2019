"""How many tokens have logits at the same time. No torch, so that a plan can ask too."""

# Logits of a chunk. On a CPU a chunk of 256 tokens multiplies a tenth slower than one of 512, one
# of 64 half as fast; with a vocabulary of 32,000 this is 524 tokens and 64 MiB.
_CHUNK_LOGITS = 2**24
_FEWEST_TOKENS = 256


def tokens_at_once(vocabulary: int, device_kind: str) -> int:
    """Tokens of a chunk on a kind of device (cpu, cuda, …)."""
    room = _CHUNK_LOGITS if device_kind == "cpu" else 8 * _CHUNK_LOGITS
    return max(_FEWEST_TOKENS, room // vocabulary)

"""Text to tokens by llama.cpp's rules, as its source has them, to compare a tokenizer with.

Followed from src/llama-vocab.cpp: `tokenizer_st_partition` cuts out special tokens, longest first;
what is between goes through byte-level BPE, or through SentencePiece's merging by score.
"""

import heapq
from collections.abc import Callable, Iterator

from lorafit.export.gguf.vocabulary import Kind, Vocabulary

SPACE = "▁"
Encode = Callable[[str, bool], list[int]]
"""From a piece of text, and whether a special token (or nothing) stands before it, to tokens."""


class EngineTokenizer:
    """What llama.cpp makes of texts with a vocabulary. No BOS or EOS; special tokens are parsed."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        special = {Kind.CONTROL, Kind.USER_DEFINED, Kind.UNKNOWN}
        self._special = sorted(
            ((token, number) for number, (token, kind) in enumerate(
                zip(vocabulary.tokens, vocabulary.kinds, strict=True)) if kind in special),
            key=lambda pair: -len(pair[0].encode()))
        self._strips = vocabulary.strips_after
        self._encode = _spm(vocabulary) if vocabulary.model == "llama" else _bpe(vocabulary)

    def __call__(self, text: str) -> list[int]:
        ids: list[int] = []
        after_special = True
        for part in self._parts(text):
            if isinstance(part, int):
                ids.append(part)
                after_special = True
            else:
                ids += self._encode(part, after_special)
                after_special = False
        return ids

    def _parts(self, text: str) -> list[str | int]:
        parts: list[str | int] = [text] if text else []
        for token, number in self._special:
            if token in text:
                parts = [piece for part in parts for piece in self._cut(part, token, number)]
        return parts

    def _cut(self, part: str | int, token: str, number: int) -> Iterator[str | int]:
        if isinstance(part, int) or token not in part:
            yield part
            return
        for place, piece in enumerate(part.split(token)):
            if place:
                yield number
                piece = piece.lstrip(" \t\n\r\v\f") if number in self._strips else piece
            if piece:
                yield piece


def _bpe(vocabulary: Vocabulary) -> Encode:
    """By the library that trained it, with llama.cpp's regular expressions."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    assert vocabulary.pre is not None
    pairs = [(left, right) for left, _, right in (pair.partition(" ") for pair in
                                                  vocabulary.merges)]
    engine = Tokenizer(models.BPE(
        vocab={token: number for number, token in enumerate(vocabulary.tokens)}, merges=pairs,
        ignore_merges=vocabulary.pre.whole_words))
    engine.pre_tokenizer = pre_tokenizers.Sequence([
        *(pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in vocabulary.pre.engine),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    return lambda text, after_special: engine.encode(text, add_special_tokens=False).ids


def _spm(vocabulary: Vocabulary) -> Encode:
    numbers = {token: number for number, token in enumerate(vocabulary.tokens)}

    def encode(text: str, after_special: bool) -> list[int]:
        if vocabulary.space_prefix and after_special:
            text = " " + text
        pieces = merged_by_score(text.replace(" ", SPACE), numbers, vocabulary.scores)
        return [number for piece in pieces for number in (
            [numbers[piece]] if piece in numbers
            else [numbers[f"<0x{byte:02X}>"] for byte in piece.encode()])]

    return encode


def merged_by_score(text: str, numbers: dict[str, int], scores: list[float]) -> list[str]:
    """Neighbours are joined as long as that makes a token, highest score first, then leftmost."""
    symbols: list[str] = list(text)
    following = [*range(1, len(symbols)), -1]
    before = list(range(-1, len(symbols) - 1))
    queue: list[tuple[float, int, int, str]] = []

    def offer(left: int, right: int) -> None:
        if left >= 0 and right >= 0 and (number := numbers.get(
                joined := symbols[left] + symbols[right])) is not None:
            heapq.heappush(queue, (-scores[number], left, right, joined))

    for place in range(len(symbols) - 1):
        offer(place, place + 1)
    while queue:
        _, left, right, joined = heapq.heappop(queue)
        if not symbols[left] or not symbols[right] or symbols[left] + symbols[right] != joined:
            continue
        symbols[left], symbols[right] = joined, ""
        following[left] = following[right]
        if following[right] >= 0:
            before[following[right]] = left
        offer(before[left], left)
        offer(left, following[left])
    return [symbol for symbol in symbols if symbol]

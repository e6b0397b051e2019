"""A tokenizer in the form that llama.cpp reads: tokens, kinds, merges or scores, special tokens."""

import json
import re
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any

from lorafit.errors import UserError
from lorafit.export.gguf.pretokenizers import PreTokenizer, recognise

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_SPACE = "▁"
# Added tokens that strip white space after them: llama.cpp does it where the model is called so.
STRIPPING_NAME = "phi-3"
_NEVER_STRIP = ("<unk>", "<s>", "<|endoftext|>")


class Kind(IntEnum):
    """Of a token, with llama.cpp's numbers."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Vocabulary:
    """model: "gpt2" for byte-level BPE, "llama" for SentencePiece's. pre: of byte-level BPE.
    kinds, scores: of each token; scores are empty for byte-level BPE, merges for SentencePiece.
    special: ids by llama.cpp's names (bos, eos, unk, pad). adds: whether bos and eos are put around
    a text. space_prefix: whether text after a special token, or at the start, gets a space before
    it; None where that is no question. strips_after: special tokens after which white space goes.
    inexact: why merging by score may differ from the tokenizer's merges, empty where it cannot.
    """

    model: str
    pre: PreTokenizer | None
    tokens: list[str]
    kinds: list[Kind]
    merges: list[str]
    scores: list[float]
    special: dict[str, int]
    adds: dict[str, bool]
    space_prefix: bool | None = None
    strips_after: frozenset[int] = frozenset()
    inexact: str = ""

    def with_space_prefix(self, value: bool) -> "Vocabulary":
        return replace(self, space_prefix=value)


def read_vocabulary(tokenizer: Any, rows: int, where: str) -> Vocabulary:
    """The vocabulary of a tokenizer, one token for each of the embedding's `rows`.

    Rows without a token get a name that no text has; tokens beyond the rows are left out, because
    nothing could be looked up for them. UserError for a tokenizer that llama.cpp does not have.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UserError("its tokenizer is written in Python and has no tokenizer.json", where,
                        "serve the merged model with another engine")
    spec: dict[str, Any] = json.loads(backend.to_str())
    model = spec["model"]
    if model["type"] != "BPE" or model.get("dropout"):
        raise UserError(
            f"its tokenizer is {model['type']}; written are byte-level BPE, and SentencePiece's "
            "BPE with byte tokens", where, "serve the merged model with another engine")
    tokens = [f"[PAD{number}]" for number in range(rows)]
    kinds = [Kind.UNUSED] * rows
    for token, number in model["vocab"].items():
        if number < rows:
            tokens[number], kinds[number] = token, _kind(token, model)
    strips = False
    for added in spec["added_tokens"]:
        if added["id"] < rows:
            tokens[added["id"]] = added["content"]
            kinds[added["id"]] = Kind.CONTROL if added["special"] else Kind.USER_DEFINED
            strips |= bool(added["rstrip"])
    if model.get("unk_token") in model["vocab"]:
        kinds[model["vocab"][model["unk_token"]]] = Kind.UNKNOWN
    common: dict[str, Any] = {
        "tokens": tokens, "kinds": kinds,
        "special": {name: number for name in ("bos", "eos", "unk", "pad")
                    if (number := getattr(tokenizer, f"{name}_token_id", None)) is not None
                    and number < rows},
        "adds": _adds(tokenizer)}
    if model.get("byte_fallback"):
        return _sentencepiece(spec, common, strips, where)
    return _byte_level(spec, common, where)


def _kind(token: str, model: dict[str, Any]) -> Kind:
    return Kind.BYTE if model.get("byte_fallback") and _BYTE.fullmatch(token) else Kind.NORMAL


def _adds(tokenizer: Any) -> dict[str, bool]:
    """Whether the tokenizer puts BOS before a text and EOS after it."""
    ids = tokenizer("a")["input_ids"]
    return {"bos": tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id,
            "eos": tokenizer.eos_token_id is not None and ids[-1] == tokenizer.eos_token_id}


def _byte_level(spec: dict[str, Any], common: dict[str, Any], where: str) -> Vocabulary:
    _refuse_normalizers(spec, {"NFC"}, where)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in spec["model"]["merges"]]
    return Vocabulary("gpt2", recognise(spec, where), merges=merges, scores=[], **common)


def _sentencepiece(spec: dict[str, Any], common: dict[str, Any], strips: bool,
                   where: str) -> Vocabulary:
    _refuse_normalizers(spec, {"Replace", "Prepend"}, where)
    step = spec.get("pre_tokenizer")
    if step is not None and not (step["type"] == "Metaspace" or _joins_spaces(step)):
        raise UserError(f"its tokenizer cuts text by {step['type']}, which llama.cpp does not do "
                        "for SentencePiece", where, "serve the merged model with another engine")
    if missing := [f"<0x{byte:02X}>" for byte in range(256)
                   if f"<0x{byte:02X}>" not in spec["model"]["vocab"]]:
        raise UserError(f"its tokenizer has no token {missing[0]} and {len(missing) - 1} others of "
                        "single bytes", where, "serve the merged model with another engine")
    scores, inexact = scores_of(spec["model"], common["tokens"], common["kinds"])
    vocabulary = Vocabulary("llama", None, merges=[], scores=scores, space_prefix=True,
                            inexact=inexact, **common)
    if not strips or "</s>" not in vocabulary.tokens:  # which llama.cpp asks for where it strips
        return vocabulary
    special = {Kind.CONTROL, Kind.USER_DEFINED, Kind.UNKNOWN}
    return replace(vocabulary, strips_after=frozenset(
        number for number, (token, kind) in enumerate(
            zip(vocabulary.tokens, vocabulary.kinds, strict=True))
        if kind in special and token not in _NEVER_STRIP))


def _joins_spaces(step: dict[str, Any]) -> bool:
    """Gemma's: cuts at spaces, of which its normalizer has left none."""
    return step["type"] == "Split" and step["pattern"] == {"String": " "}


def _refuse_normalizers(spec: dict[str, Any], known: set[str], where: str) -> None:
    steps = spec.get("normalizer")
    if steps is None:
        return
    for step in steps["normalizers"] if steps["type"] == "Sequence" else [steps]:
        is_spaces = step["type"] != "Replace" or (
            step["pattern"], step["content"]) == ({"String": " "}, _SPACE)
        if step["type"] not in known or not is_spaces:
            raise UserError(f"its tokenizer changes text by {step['type']} before it cuts it, "
                            "which llama.cpp does not do", where,
                            "serve the merged model with another engine")


def scores_of(model: dict[str, Any], tokens: list[str],
              kinds: list[Kind]) -> tuple[list[float], str]:
    """A score for each token, so that merging by score is merging in the order of the merges.

    llama.cpp joins whatever makes a token, the highest score first. That is the same when every
    way to cut a token into two is a merge, and the merges of one token stand together. The second
    value says where that does not hold.
    """
    ranks: dict[str, list[int]] = {}
    merges = set()
    for rank, pair in enumerate(model["merges"]):
        left, right = pair.split(" ") if isinstance(pair, str) else pair
        merges.add((left, right))
        ranks.setdefault(left + right, []).append(rank)
    scores = []
    for token, kind in zip(tokens, kinds, strict=True):
        scores.append(-float(ranks[token][0]) if token in ranks and kind == Kind.NORMAL
                      else 0.0 if kind == Kind.BYTE else -1e6)
    vocabulary = set(tokens)
    scattered = sum(max(found) - min(found) + 1 != len(found) for found in ranks.values())
    extra = sum(
        (token[:cut], token[cut:]) not in merges
        for token, kind in zip(tokens, kinds, strict=True) if kind == Kind.NORMAL
        for cut in range(1, len(token)) if token[:cut] in vocabulary and token[cut:] in vocabulary)
    if not scattered and not extra:
        return scores, ""
    return scores, (f"the merges of {scattered:,} tokens are scattered, and {extra:,} ways to make "
                    "a token are no merges")


def add_vocabulary(writer: Any, vocabulary: Vocabulary) -> None:
    """Write it as metadata."""
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre.name if vocabulary.pre else "default")
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types([int(kind) for kind in vocabulary.kinds])
    if vocabulary.scores:
        writer.add_token_scores(vocabulary.scores)
    if vocabulary.merges:
        writer.add_token_merges(vocabulary.merges)
    for name, number in vocabulary.special.items():
        getattr(writer, f"add_{name}_token_id")(number)
    for name, adds in vocabulary.adds.items():
        getattr(writer, f"add_add_{name}_token")(adds)
    if vocabulary.space_prefix is not None:
        writer.add_add_space_prefix(vocabulary.space_prefix)

r"""How llama.cpp cuts text before byte-level BPE: its names, and what a tokenizer.json must say.

The name in a GGUF (`tokenizer.ggml.pre`) selects regular expressions that are compiled into
llama.cpp (src/llama-vocab.cpp). A wrong name is never an error there: texts become other tokens
than in training. So a tokenizer is recognised by its own expressions, and by nothing else.
"""

from dataclasses import dataclass
from typing import Any

from lorafit.errors import UserError

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = (r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
_DIGIT, _DIGITS = r"\p{N}", r"\p{N}+"


def _words(digits: str, letters: str = r"\p{L}") -> str:
    """The family of cl100k: Llama 3, Qwen, Phi-4."""
    others = r"\s" + letters + r"\p{N}"
    word = letters if letters == r"\p{L}" else f"[{letters}]"
    return (rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?{word}+|{digits}"
            rf"| ?[^{others}]+[\r\n]*|{_SPACES}")


def _cased(upper: str, lower: str, tail: str, digits: str) -> str:
    """The family of o200k: words are cut where their case changes."""
    lead = r"[^\r\n\p{L}\p{N}]?"
    return (rf"{lead}{upper}*{lower}+{tail}|{lead}{upper}+{lower}*{tail}|{digits}"
            rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}")


_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
# llama.cpp's regular expressions know no categories below \p{L}: case is told of ASCII only.
_NOT_LOWER, _NOT_UPPER = r"((?=[\p{L}])([^a-z]))", r"((?=[\p{L}])([^A-Z]))"
_DEEPSEEK = (
    r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")


@dataclass(frozen=True)
class PreTokenizer:
    """name: in the GGUF. patterns: the expressions of a tokenizer.json, applied one after the
    other. whole_words: a piece that is in the vocabulary is taken without merging (ignore_merges).
    computed: the expressions that llama.cpp has in their place.
    """

    name: str
    patterns: tuple[str, ...]
    whole_words: bool = False
    computed: tuple[str, ...] = ()

    @property
    def engine(self) -> tuple[str, ...]:
        return self.computed or self.patterns


PRE_TOKENIZERS = (
    PreTokenizer("llama-bpe", (_words(r"\p{N}{1,3}"),), whole_words=True),
    PreTokenizer("dbrx", (_words(r"\p{N}{1,3}"),)),
    PreTokenizer("qwen2", (_words(_DIGIT),)),
    PreTokenizer("qwen35", (_words(_DIGIT, r"\p{L}\p{M}"),)),
    PreTokenizer("gpt-2", (_GPT2,)),
    PreTokenizer("smollm", (_DIGIT, _GPT2)),
    PreTokenizer("tekken", (_cased(_UPPER, _LOWER, "", _DIGIT),), whole_words=True,
                 computed=(_cased(_NOT_LOWER, _NOT_UPPER, "", _DIGIT),)),
    PreTokenizer("gpt-4o", (_cased(_UPPER, _LOWER, f"{_CONTRACTIONS}?", r"\p{N}{1,3}"),),
                 computed=(_cased(_NOT_LOWER, _NOT_UPPER, f"{_CONTRACTIONS}?", r"\p{N}{1,3}"),)),
    PreTokenizer("deepseek-v3", _DEEPSEEK),
)


def recognise(tokenizer: dict[str, Any], where: str) -> PreTokenizer:
    """llama.cpp's pre-tokenizer for a tokenizer.json of byte-level BPE. UserError for another."""
    patterns = _patterns(tokenizer.get("pre_tokenizer"))
    whole_words = bool(tokenizer["model"].get("ignore_merges"))
    for known in PRE_TOKENIZERS:
        if patterns == known.patterns and whole_words == known.whole_words:
            return known
    described = " then ".join(patterns) if patterns else "by no rule that is known here"
    raise UserError(
        f"its tokenizer cuts text in a way that llama.cpp is not known to have: {described}"
        f"{' (whole words first)' if whole_words else ''}", where,
        "serve the merged model with another engine; a wrong guess would change tokens silently")


def _patterns(part: dict[str, Any] | None) -> tuple[str, ...] | None:
    """Regular expressions in their order; None for what cannot be said in them."""
    if part is None:
        return None
    found: list[str] = []
    for step in part["pretokenizers"] if part["type"] == "Sequence" else [part]:
        if step["type"] == "Digits":
            found.append(_DIGIT if step["individual_digits"] else _DIGITS)
        elif step["type"] == "ByteLevel" and not step["add_prefix_space"]:
            found += [_GPT2] if step.get("use_regex", True) else []
        elif step["type"] == "Split" and _keeps_matches(step):
            found.append(step["pattern"]["Regex"])
        else:
            return None
    return tuple(found)


def _keeps_matches(step: dict[str, Any]) -> bool:
    """Whether what the expression matches becomes pieces: said in one of two ways."""
    how = step["behavior"], bool(step.get("invert"))
    return "Regex" in step["pattern"] and how in (("Isolated", False), ("Removed", True))

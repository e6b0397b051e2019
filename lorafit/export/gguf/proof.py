"""Whether llama.cpp will see the tokens of training: measured on texts before a file is written."""

from dataclasses import dataclass
from typing import Any

from lorafit.errors import UserError
from lorafit.export.gguf.engine_tokens import EngineTokenizer
from lorafit.export.gguf.vocabulary import Vocabulary

ORDINARY = (
    "The capital of France is Paris, and 12 + 30 = 42.",
    "Anna's friends weren't there; they'd left at 7:45 p.m. (or so she'd SAID).",
    "def add(a, b):\n    return a + b  # twice\n\n\nprint(add(1, 2))\n",
    "Dear all,\n\nplease find 3 files attached: a.txt, b.csv and c-2.json.\n\tBest\n",
    "{\"name\": \"x\", \"values\": [1, 22, 333, 4444, 55555]}",
)
UNUSUAL = (
    "  two spaces first", "a trailing space ", "many      spaces and\t\ttabs", "\n\n\nlines first",
    "line\r\nwith returns\r\n", " ",
    "a\u00a0hard\u00a0space", "Grüße aus Zürich: schön, ÉCOLE, naïve",
    "d\u00e9composé: de\u0301compose\u0301", "Привет, мир! Как дела?", "你好，世界。今天是2024年。",
    "こんにちは、世界！テスト", "안녕하세요 세계", "नमस्ते दुनिया", "مرحبا بالعالم", "שלום עולם",
    "👋🏽 hi 👩‍👩‍👧 ✨🎉", "½ and ² and Ⅷ and ٣", "CamelCaseWords and snake_case_words HTTPServer",
    "I'LL it'S WE'VE ’tis don’t", "x²+y²=z², ∑∞≠∂", "e-mail@example.com https://a.b/c?d=e&f#g",
    "0123456789 3.14159 1,000,000 0x1F", "!!!??? ... --- === /// \\\\ ((()))", "ﬁ ﬀ Ǆ ſ",
    "\u200b\ufeff",
)


@dataclass(frozen=True)
class Tokenised:
    """The vocabulary that agrees best, and the texts whose tokens still differ."""

    vocabulary: Vocabulary
    texts: int
    different: list[str]

    def remark(self) -> str:
        if not self.different:
            return ""
        shown = ", ".join(repr(text) for text in self.different[:3])
        return (f"llama.cpp makes other tokens than the tokenizer of {len(self.different)} of "
                f"{self.texts} sample texts: {shown}{' …' if len(self.different) > 3 else ''}")


def agree(tokenizer: Any, vocabulary: Vocabulary, prompts: list[str], where: str) -> Tokenised:
    """Compare the tokens of prompts and sample texts. UserError unless all prompts agree.

    prompts: conversations as the template renders them; ordinary sentences where there are none.
    """
    must = prompts or list(ORDINARY)
    texts = list(dict.fromkeys((*must, *ORDINARY, *UNUSUAL)))
    wanted = {text: list(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts}
    choices = [vocabulary] if vocabulary.space_prefix is None else [
        vocabulary.with_space_prefix(value) for value in (True, False)]
    best = min((_different(choice, wanted, must) for choice in choices),
               key=lambda found: (any(text in must for text in found.different),
                                  len(found.different)))
    if wrong := next((text for text in best.different if text in must), None):
        raise UserError(
            f"llama.cpp would cut {wrong[:60]!r} into other tokens than the tokenizer of training"
            + (f" ({vocabulary.inexact})" if vocabulary.inexact else ""), where,
            "serve the merged model with another engine")
    return best


def _different(vocabulary: Vocabulary, wanted: dict[str, list[int]], must: list[str]) -> Tokenised:
    engine = EngineTokenizer(vocabulary)
    return Tokenised(vocabulary, len(wanted),
                     [text for text, ids in wanted.items() if engine(text) != ids])

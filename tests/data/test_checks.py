"""What the checks of single rows find, and that they leave correct rows alone."""

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorafit.data.checks import FLAGS, RowChecker, texts_of
from lorafit.data.examples import Conversation, Exchange, Message, Passage
from lorafit.data.misread import misread
from lorafit.data.scripts import SCRIPTS, script_of
from lorafit.model.base import TINY

# Sentences with whatever their languages put around words, no-break spaces included.
CORRECT = {
    "french": "«\u00a0L’été\u00a0», déjà\u00a0: «\u00a0à Noël\u00a0» et «\u00a0é\u00a0»… ÉTÉ\u00a0»"
              " ça, là\u00a0!",
    "french capitals": "CAFÉ… DÉJÀ\u00a0» OÙ\u00a0? FORÊT” ÇA",
    "portuguese": "“IRMÔ, MAÇÃ… MANHÃ» e ALEMÃ\u00a0– a ação não é à toa: coração, avó’",
    "spanish": "«mamá»… “PERÚ” ¿Qué? ESPAÑA; ½ año, 20\u00a0€",
    "german": "„Spaß“ und „Straße“… GRÖßE ÄÖÜ „Ä“",
    "swedish": "SMÅ… HÄ… NÅ” och 5 Å² till 20 Å³, 1 Å·m, “Å”",
    "polish": "Zażółć gęślą jaźń – „Łódź”… ŹDŹBŁO",
    "vietnamese": "Tiếng Việt: ẩm thực đặc biệt là phở; “Đâu có!” — ấy… “ở”",
    "romanian": "„Când”… ÎN România, ȘI “Țară”",
    "turkish": "İstanbul’da “ŞÜKRÜ” ağaç",
    "icelandic": "Ísland: „það“… Ð",
    "czech": "Příliš žluťoučký kůň „úpěl“ ďábelské ódy",
    "russian": "Русский текст «так»… “да”",
    "greek": "ελληνικά «ναι»",
    "hebrew": "שלום עולם", "arabic": "مرحبا بالعالم", "hindi": "नमस्ते दुनिया",
    "chinese": "中文文本，全角（括号）。", "japanese": "日本語のテキスト。",
    "korean": "한국어 문장",
    "emoji": "😀 👩\u200d👩\u200d👧\u200d👦 🇫🇷 ❤\ufe0f",
    "mathematics": "x² ≤ y³ ± ∞, √2 → ∫ ½ ° µ·m ¬p",
    "layout": "a\tb\r\nc\fd",
}
BROKEN_AS_CP1252 = [
    "été", "château", "ação", "Zażółć gęślą", "phở Việt", "l’été", "naïve", "a – b", "Größe",
    "señor", "10 €", "™", "Ελλάδα", "日本語", "한국어", "😀", "à la", "voilà", "Ô Canada", "→",
    "≤", "✓", "don’t", "\ufeffid",
]


@pytest.fixture(scope="module")
def tokenizer() -> object:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(TINY)


@pytest.fixture(scope="module")
def checker(tokenizer: object) -> RowChecker:
    return RowChecker(tokenizer)


def found(checker: RowChecker, example: object) -> set[str]:
    """Names of the checks whose flag is set; each must have a reason, and no other may."""
    flags = checker.notes(example).flags
    names = {check for check, flag in FLAGS.items() if flags & flag}
    assert names == {check for check in FLAGS if checker.reason(example, check) is not None}
    return names


def chat(*turns: tuple[str, str], **of_last: object) -> Conversation:
    messages = [Message(role, content) for role, content in turns]
    messages[-1] = Message(*turns[-1], **of_last)
    return Conversation(tuple(messages))


# ---- encoding


@pytest.mark.parametrize("language", CORRECT)
def test_correct_text_is_left_alone(language: str) -> None:
    assert misread(CORRECT[language]) is None
    assert misread(f"So he said: {CORRECT[language]} Then he left.") is None


@pytest.mark.parametrize("text", BROKEN_AS_CP1252)
@pytest.mark.parametrize("encoding", ["cp1252", "latin-1"])
def test_utf8_read_as_another_encoding_is_found(text: str, encoding: str) -> None:
    broken = text.encode().decode(encoding)
    assert misread(broken) is not None
    assert misread(f"I said {broken} to him.") is not None


@settings(max_examples=200, deadline=None)
@given(st.text("abcdefgh .,", max_size=12), st.text("éèàçöüñíóêãõßÇÉÖ", min_size=1, max_size=3),
       st.text("abcdefgh ABCD.,", max_size=12), st.integers(1, 2))
def test_accents_are_found_broken_and_left_alone_whole(before: str, accents: str, after: str,
                                                       times: int) -> None:
    """Also what was broken twice. Not behind a capital: `MAÇÃ` and a no-break space are fine."""
    text = before + accents + after
    assert misread(text) is None
    for _ in range(times):
        text = text.encode().decode("latin-1")
    assert misread(text) is not None


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(max_codepoint=0x17F, categories=["L", "N", "P", "Zs"])))
def test_what_is_found_stands_in_the_text(text: str) -> None:
    part = misread(text)
    assert part is None or part in text


@pytest.mark.parametrize("char", ["\ufffd", "\x00", "\x1b", "\x7f", "\x85", "\x9f", "\ufeff"])
def test_characters_that_no_text_has_are_found(char: str) -> None:
    assert misread(f"before{char}after") == char
    assert misread(f"préva{char}lu") == char


# ---- special tokens and markup


def test_a_special_token_is_found_wherever_it_is_spelled(checker: RowChecker) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {"q": ["x<|end|>"]}}}
    tool = {"type": "function", "function": {"name": "f", "description": "see <|end|>"}}
    said = (("user", "hello"), ("assistant", "fine"))
    spelled = [
        Exchange("say <|end|>", "no"), Exchange("a", "b<|user|>"), Exchange("a", "b", "<|pad|>"),
        Passage("one <|end|> two"), chat(("user", "<|end|>"), said[1]),
        chat(*said, reasoning="hm <|end|>"), chat(*said, tool_calls=(call,)),
        chat(*said, ("tool", "result <|end|>"), said[1]),
        Conversation(chat(*said).messages, (tool,)),
    ]
    for example in spelled:
        assert found(checker, example) == {"special_tokens"}
    assert found(checker, chat(*said)) == set()


@pytest.mark.parametrize("markup", [
    "<|im_start|>user", "<|eot_id|>", "<|start_header_id|>", "[INST] hi [/INST]", "<<SYS>>",
    "<start_of_turn>model", "<end_of_turn>", "yes</s>", "<｜User｜>hi",
    "<｜end▁of▁sentence｜>", "<|START_OF_TURN_TOKEN|>", "### Instruction:\nhi\n### Response:",
    "[gMASK]", "<bos>",
])
def test_markup_of_other_templates_is_found(checker: RowChecker, markup: str) -> None:
    assert found(checker, Exchange("hello", markup)) == {"foreign_markup"}


@pytest.mark.parametrize("text", [
    "f <| x |> g", "a <|> b", "<s>no longer</s>", "[INSTALL]", "list[INT]", "see ### Response: x",
    "1 << SYS >> 2", "<b>bold</b>", "x <| y", "#### Response: 4",
])
def test_code_and_prose_are_no_markup(checker: RowChecker, text: str) -> None:
    assert found(checker, Exchange("hello", text)) == set()


def test_the_tokens_of_this_tokenizer_are_not_foreign(checker: RowChecker) -> None:
    example = Passage("<|user|> hi <|im_end|>")
    assert found(checker, example) == {"special_tokens", "foreign_markup"}
    assert (checker.reason(example, "foreign_markup") or "").endswith("<|im_end|>")


# ---- empty answers


@pytest.mark.parametrize("content", ["", "  \n\t", "\u200b", "\u00a0\ufeff "])
def test_an_empty_answer_is_found(checker: RowChecker, content: str) -> None:
    example = chat(("user", "hi"), ("assistant", "ok"), ("user", "hi"), ("assistant", content))
    assert "empty_answer" in found(checker, example)


def test_an_answer_that_calls_or_thinks_is_not_empty(checker: RowChecker) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    asked = (("user", "hi"), ("assistant", ""))
    assert found(checker, chat(*asked, tool_calls=(call,))) == set()
    assert found(checker, chat(*asked, reasoning="hm")) == set()


@pytest.mark.parametrize(("train_on", "expected"), [
    ("assistant", [True, True, True, True]), ("all", [True, True, True, True]),
    ("last", [False, False, True, True]), ("completion", [False, True, True, True]),
])
def test_only_answers_that_are_trained_may_not_be_empty(tokenizer: object, train_on: str,
                                                        expected: list[bool]) -> None:
    """Of a conversation with three answers each is emptied in turn; then an earlier one that its
    own weight trains."""
    checker = RowChecker(tokenizer, train_on)
    turns = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), ("tool", "e"),
             ("assistant", "f")]
    results = []
    for emptied in (1, 3, 5):
        messages = [Message(role, "" if i == emptied else content)
                    for i, (role, content) in enumerate(turns)]
        results.append("empty_answer" in found(checker, Conversation(tuple(messages))))
    messages = [Message(*turn) for turn in turns]
    messages[1] = Message("assistant", "", weight=0.5)
    results.append("empty_answer" in found(checker, Conversation(tuple(messages))))
    assert results == expected
    messages[1] = Message("assistant", "", weight=0)
    assert found(checker, Conversation(tuple(messages))) == set()


# ---- scripts


@pytest.mark.parametrize(("text", "script"), [
    ("Natalia sold 48 clips.", "latin"), ("Déjà vu à Noël", "latin"),
    ("Прошлым летом мы были там", "cyrillic"), ("ελληνικά κείμενα εδώ", "greek"),
    ("去年夏天我们参观了城堡", "han"), ("東京に行きました。とても楽しい。", "japanese"),
    ("작년 여름에 우리는 성을 방문했습니다", "hangul"), ("زرنا القلعة الصيف الماضي", "arabic"),
    ("नमस्ते दुनिया कैसे हैं", "devanagari"), ("48 + 2 = 50", "none"), ("x = 3", "none"),
    ("Запустите git clone и pip install torch, потом всё", "cyrillic"),
    ("the angle α and the angle β add up to 180", "latin"),
])
def test_the_script_of_a_text(text: str, script: str) -> None:
    assert SCRIPTS[script_of(text)] == script


def test_a_row_is_in_the_script_of_what_is_trained(checker: RowChecker) -> None:
    example = Exchange("Please translate this sentence into Russian.", "Переведите предложение")
    assert SCRIPTS[checker.notes(example).script] == "cyrillic"


# ---- digests and real data


def test_digests_ignore_case_and_white_space_only(checker: RowChecker) -> None:
    def digest(text: str) -> int:
        return checker.notes(Passage(text)).digest

    assert digest("Hello  World\n") == digest("hello world")
    assert digest("hello world") != digest("hello, world")


def test_every_text_of_a_row_is_looked_at() -> None:
    example = chat(("system", "a"), ("user", "b"), ("assistant", "c"), reasoning="d")
    assert [text for _, text in texts_of(example)] == ["a", "b", "c", "d"]


def test_real_sums_have_nothing_wrong(gsm8k: Path, checker: RowChecker) -> None:
    rows = [json.loads(line) for line in (gsm8k / "test.jsonl").open(encoding="utf-8")]
    notes = [checker.notes(Exchange(row["question"], row["answer"]))
             for row in rows]
    assert len(notes) == 1319
    assert not [row for row, note in zip(rows, notes, strict=True) if note.flags]
    assert {SCRIPTS[note.script] for note in notes} <= {"latin", "none"}


def test_real_conversations_have_what_a_plain_search_finds(hh_rlhf: Path,
                                                           checker: RowChecker) -> None:
    lines = gzip.decompress(hh_rlhf.read_bytes()).decode().strip().split("\n")
    rows = [json.loads(line) for line in lines]
    for row in rows:
        flagged = found(checker, Passage(row["chosen"]))
        odd = any(char == "\ufffd" or "\x80" <= char < "\xa0" for char in row["chosen"])
        assert ("encoding" in flagged) == odd, row["chosen"]
        assert not flagged & {"special_tokens", "foreign_markup"}

"""A row of tokens as text: exact, whole characters, nothing hidden, no boundary lost."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorafit.data.tokens import Tokens
from lorafit.model.base import TINY
from lorafit.preview.pieces import cut, pieces_of, runs_of
from lorafit.preview.rowtext import CLOSE, OPEN, row_text
from lorafit.preview.visible import safe, split_hidden

TRICKS = "\x1b[31m\x07\u202e\u2066\u200b\u200d\ufeff\x85\u00ad\ufe00\u3164\U000e0041\r\x00\u2028"


@pytest.fixture(scope="module")
def byte_level() -> Any:
    """The tiny base's tokenizer: characters outside its vocabulary are several tokens."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(TINY)


@pytest.fixture(scope="module")
def sentence_piece() -> Any:
    """A tokenizer as Llama 2 has it: words begin with ▁, and unknown characters are bytes."""
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁",
             *"abcdefghijklmnopqrstuvwxyz", "▁a", "th", "▁th"]
    model = models.BPE({name: number for number, name in enumerate(names)},
                       [("▁", "a"), ("t", "h"), ("▁", "th")], unk_token="<unk>",
                       byte_fallback=True, fuse_unk=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"),
                                                 normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([
        decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
        decoders.Strip(" ", 1, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>",
                                   unk_token="<unk>")


@pytest.fixture(params=["byte_level", "sentence_piece"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def row(tokenizer: Any, text: str, trained: slice = slice(0, 0)) -> Tokens:
    ids = np.array(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.int32)
    supervised = np.zeros(len(ids), dtype=bool)
    supervised[trained] = True
    return Tokens(ids, supervised)


# ---- pieces


@pytest.mark.parametrize("text", [
    "the cat", "café 😀👩\u200d👩\u200d👧 日本語 Ωmega", "a\n\n\tb  c ", "<s>x</s>", "  spaces",
    "é", "\ufffd a"])
def test_pieces_are_the_row_decoded(tokenizer: Any, text: str) -> None:
    tokens = row(tokenizer, text)
    pieces = pieces_of(tokens, tokenizer)
    whole = tokenizer.decode(tokens.ids.tolist(), skip_special_tokens=False,
                             clean_up_tokenization_spaces=False)
    assert "".join(piece.text for piece in pieces) == whole
    assert [number for piece in pieces for number in piece.ids] == tokens.ids.tolist()
    assert "\ufffd" in text or not any("\ufffd" in piece.text for piece in pieces)


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=30))
def test_pieces_of_any_text(byte_level: Any, text: str) -> None:
    tokens = row(byte_level, text)
    pieces = pieces_of(tokens, byte_level)
    assert "".join(piece.text for piece in pieces) == text
    assert sum(len(piece.ids) for piece in pieces) == len(tokens)
    assert all(piece.text and piece.is_whole for piece in pieces)


def test_a_character_of_several_tokens_is_one_piece(byte_level: Any) -> None:
    tokens = row(byte_level, "日")
    assert len(tokens) > 1
    (piece,) = pieces_of(tokens, byte_level)
    assert piece.text == "日"
    assert len(piece.ids) == len(tokens)


def test_special_tokens_are_told_from_text(byte_level: Any) -> None:
    pieces = pieces_of(row(byte_level, "<|user|> <|im_end|>"), byte_level)
    assert [piece.text for piece in pieces if piece.is_special] == ["<|user|>"]


@settings(max_examples=100, deadline=None)
@given(text=st.text("a日😀é ", min_size=1, max_size=12), data=st.data())
def test_a_cut_row_loses_no_token_and_shows_no_broken_character(byte_level: Any, text: str,
                                                                data: Any) -> None:
    tokens = row(byte_level, text)
    start = data.draw(st.integers(0, len(tokens) - 1))
    end = data.draw(st.integers(start + 1, len(tokens)))
    whole = pieces_of(tokens, byte_level)
    part = cut(whole, start, end)
    assert [number for piece in part for number in piece.ids] == tokens.ids[start:end].tolist()
    assert "\ufffd" not in "".join(piece.text for piece in part)
    assert cut(whole, 0, len(tokens)) == whole


# ---- hidden characters


@settings(max_examples=300, deadline=None)
@given(st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from(TRICKS)), max_size=40))
def test_nothing_reaches_a_terminal_that_could_steer_it(text: str) -> None:
    shown = safe(text)
    assert shown.isprintable()
    assert "".join(part for part, _ in split_hidden(text)) == text


@pytest.mark.parametrize("char", TRICKS.replace("[31m", ""))
def test_hidden_characters_are_written_out(char: str) -> None:
    assert safe(f"a{char}b") == f"a⟨U+{ord(char):04X}⟩b"


def test_plain_text_stays_as_it_is() -> None:
    text = "Größe, naïve, 日本語, שלום, 😀, x² ≤ y, don’t"
    assert safe(text) == text


# ---- text of a row


def without_marks(text: str) -> str:
    return text.replace("↵\n", "\n").replace("␣", " ").replace(OPEN, "").replace(CLOSE, "")


def test_brackets_stand_around_what_is_trained(byte_level: Any) -> None:
    text = "<|user|>\nHow much?<|end|>\n<|assistant|>\n 7 <|end|>\n"
    ids = row(byte_level, text).ids.tolist()
    special = [i for i, number in enumerate(ids) if number in byte_level.all_special_ids]
    answer = slice(special[2] + 2, special[3] + 1)
    plain = row_text(pieces_of(row(byte_level, text, answer), byte_level), in_colour=False).plain
    assert plain == ("<|user|>↵\nHow much?<|end|>↵\n<|assistant|>↵\n"
                     f"{OPEN}␣7 <|end|>{CLOSE}↵\n")


def test_spaces_at_the_edges_of_what_is_trained_are_seen(byte_level: Any) -> None:
    tokens = row(byte_level, "  two words  ", slice(None))
    assert row_text(pieces_of(tokens, byte_level), in_colour=False).plain == \
        f"{OPEN}␣␣two words␣␣{CLOSE}"


def test_brackets_of_the_text_are_not_taken_for_marks(byte_level: Any) -> None:
    plain = row_text(pieces_of(row(byte_level, "⟦x⟧"), byte_level), in_colour=False).plain
    assert plain == "⟨U+27E6⟩x⟨U+27E7⟩"


def test_weights_are_shown(byte_level: Any) -> None:
    tokens = row(byte_level, "a b c d", slice(1, None))
    weights = np.ones(len(tokens), dtype=np.float32)
    weights[0], weights[1:3] = 0, 0.5
    pieces = pieces_of(Tokens(tokens.ids, tokens.supervised, weights), byte_level)
    assert [len(run) for run in runs_of(pieces)] == [1, 2, len(pieces) - 3]
    assert row_text(pieces, in_colour=False).plain.count("⟨×0.5⟩") == 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 900)), min_size=1, max_size=8))
def test_a_long_row_is_shortened_but_at_no_boundary(byte_level: Any,
                                                    runs: list[tuple[bool, int]]) -> None:
    """What is shown and what is counted as left out is the whole row; around each boundary
    between trained and not trained some tokens stay."""
    mask = np.concatenate([np.full(count, trained) for trained, count in runs])
    one = row(byte_level, "x").ids[0]
    pieces = pieces_of(Tokens(np.full(len(mask), one, np.int32), mask), byte_level)
    plain = row_text(pieces, in_colour=False).plain
    left_out = [int(part.split()[0].replace(",", "")) for part in plain.split("⟨… ")[1:]]
    shown = plain.replace("tokens", "")
    assert shown.count("x") + sum(left_out) == len(mask)
    assert plain.count(OPEN) == plain.count(CLOSE) == sum(
        run[0].supervised for run in runs_of(pieces))
    assert shown.count("x") < 700
    for mark in (OPEN, CLOSE):
        for before, after in zip(plain.split(mark), plain.split(mark)[1:], strict=False):
            assert not before.endswith("…⟩ ")
            assert not after.startswith(" ⟨…")


def test_every_other_token_is_underlined_in_colour(byte_level: Any) -> None:
    tokens = row(byte_level, "the cat sat on the mat")
    text = row_text(pieces_of(tokens, byte_level), in_colour=True)
    underlined = [str(span.style) == "underline" for span in text.spans]
    assert sum(underlined) == len(tokens) // 2
    assert text.plain == "the cat sat on the mat"


def test_lines_between_tokens_tell_where_each_ends(byte_level: Any) -> None:
    tokens = row(byte_level, "unbelievably")
    shown = row_text(pieces_of(tokens, byte_level), in_colour=False, separate=True).plain
    assert shown.split("│")[:-1] == byte_level.batch_decode([[number] for number in tokens.ids])

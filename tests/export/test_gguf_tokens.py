"""Tokenizers in llama.cpp's form: SentencePiece's merges as scores, and what cannot be said."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from lorafit.errors import UserError
from lorafit.export.gguf.chat import plain_template
from lorafit.export.gguf.engine_tokens import EngineTokenizer
from lorafit.export.gguf.modelfile import go_template, take_apart
from lorafit.export.gguf.pretokenizers import PRE_TOKENIZERS
from lorafit.export.gguf.proof import ORDINARY, UNUSUAL, agree
from lorafit.export.gguf.vocabulary import read_vocabulary
from lorafit.model.base import TINY

CORPUS = [Path(__file__).read_text(encoding="utf-8"), *ORDINARY, *UNUSUAL]
TEMPLATE = ("{{ bos_token }}{% for m in messages %}"
            "[{{ m['role'] }}] {{ m['content'] | trim }}</s>\n"
            "{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}")


@cache
def sentencepiece(prepend: bool = True, complete: bool = True) -> Any:
    """BPE with byte tokens, as Llama 2's and Gemma's: every way to make a token is a merge."""
    spaces = [normalizers.Prepend("▁")] if prepend else []
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Sequence([*spaces, normalizers.Replace(" ", "▁")])
    trained.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=700, show_progress=False))
    pieces = sorted(trained.get_vocab(), key=lambda piece: trained.get_vocab()[piece])
    vocabulary = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    numbers = {piece: number for number, piece in enumerate(vocabulary)}
    merges = [(piece[:cut], piece[cut:]) for piece in pieces for cut in range(1, len(piece))
              if piece[:cut] in numbers and piece[cut:] in numbers]
    if not complete:
        merges = [pair for number, pair in enumerate(merges) if number % 3]
    engine = Tokenizer(models.BPE(vocab=numbers, merges=merges, unk_token="<unk>",
                                  byte_fallback=True, fuse_unk=True))
    engine.normalizer = trained.normalizer
    engine.decoder = decoders.ByteFallback()
    return PreTrainedTokenizerFast(tokenizer_object=engine, unk_token="<unk>", bos_token="<s>",
                                   eos_token="</s>", chat_template=TEMPLATE)


@pytest.mark.parametrize("prepend", [True, False])
def test_merging_by_score_is_merging_in_the_order_of_the_merges(prepend):
    tokenizer = sentencepiece(prepend)
    vocabulary = read_vocabulary(tokenizer, len(tokenizer), "here")
    assert vocabulary.model == "llama"
    assert vocabulary.inexact == ""
    found = agree(tokenizer, vocabulary, [], "here")
    assert found.different == []
    assert found.vocabulary.space_prefix is prepend


def test_merges_that_scores_cannot_say_are_noticed():
    tokenizer = sentencepiece(complete=False)
    vocabulary = read_vocabulary(tokenizer, len(tokenizer), "here")
    assert "are no merges" in vocabulary.inexact
    with pytest.raises(UserError, match="into other tokens than the tokenizer of training"):
        agree(tokenizer, vocabulary, [], "here")


def test_special_tokens_are_cut_out_first_and_unused_rows_get_names():
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    vocabulary = read_vocabulary(tokenizer, len(tokenizer) + 3, "here")
    assert vocabulary.tokens[-1] == f"[PAD{len(tokenizer) + 2}]"
    text = "<|user|>\nDoesn't 2024 work?<|end|><|assistant|>"
    assert EngineTokenizer(vocabulary)(text) == tokenizer(text)["input_ids"]


@pytest.mark.parametrize("known", PRE_TOKENIZERS, ids=lambda known: known.name)
def test_each_pre_tokenizer_is_recognised_by_its_expressions_alone(known):
    """And what llama.cpp computes in its place cuts ordinary text alike."""
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence([
        *(pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in known.patterns),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    backend.model.ignore_merges = known.whole_words
    vocabulary = read_vocabulary(tokenizer, len(tokenizer), "here")
    assert vocabulary.pre == known
    assert not set(agree(tokenizer, vocabulary, [], "here").different) & set(ORDINARY)


def test_a_wrong_pre_tokenizer_would_be_seen():
    """What the comparison of tokens is for: numbers of three digits, cut into single ones."""
    by_name = {known.name: known for known in PRE_TOKENIZERS}
    engine = Tokenizer(models.BPE(ignore_merges=True))
    engine.pre_tokenizer = pre_tokenizers.Sequence([
        *(pre_tokenizers.Split(Regex(pattern), "isolated")
          for pattern in by_name["llama-bpe"].patterns),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    engine.train_from_iterator([" ".join(map(str, range(1000)))] * 2, trainers.BpeTrainer(
        vocab_size=1200, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=engine)
    vocabulary = read_vocabulary(tokenizer, len(tokenizer), "here")
    assert vocabulary.pre == by_name["llama-bpe"]
    assert agree(tokenizer, vocabulary, [], "here").different == []
    with pytest.raises(UserError, match="other tokens than the tokenizer of training"):
        agree(tokenizer, replace(vocabulary, pre=by_name["smollm"]), [], "here")


def test_a_template_of_texts_around_messages_becomes_ollamas():
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    turns = take_apart(tokenizer, plain_template(tokenizer))
    assert turns is not None
    assert go_template(turns) == (
        '{{ range .Messages }}{{ if eq .Role "system" }}<|system|>\n{{ .Content }}<|end|>\n'
        '{{ else if eq .Role "user" }}<|user|>\n{{ .Content }}<|end|>\n'
        '{{ else if eq .Role "assistant" }}<|assistant|>\n{{ .Content }}<|end|>\n'
        "{{ end }}{{ end }}<|assistant|>\n")
    trimming = take_apart(tokenizer, "{% for m in messages %}({{ m['role'] }}) "
                          "{{ m['content'] | trim }};{% endfor %}(assistant) ")
    assert trimming is None  # it ends with a prompt, asked or not
    stripping = take_apart(sentencepiece(), TEMPLATE)
    assert stripping is not None
    assert stripping.strips
    assert take_apart(tokenizer, "{% for m in messages %}{{ loop.index }}{{ m['content'] }}"
                      "{% endfor %}") is None

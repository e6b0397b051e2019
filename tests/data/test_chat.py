"""What is trained: exactly what the assistant says and the token that ends its turn."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from lorafit.data.chat import Renderer, Span, resolve_template
from lorafit.data.chat.encoder import Encoder
from lorafit.data.chat.masks import Rendered, tokenise, weights_by_offsets
from lorafit.data.examples import BadRow, Conversation, Exchange, Message, Passage
from lorafit.data.tokens import Tokens
from lorafit.errors import UserError
from lorafit.model.base import TINY

CHATML = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""
LLAMA3 = """\
{{- bos_token }}
{%- for message in messages -%}
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' -}}
{{- message['content'] + '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
{%- endif -%}
"""
GEMMA = """\
{{- bos_token -}}
{%- if messages[0]['role'] == 'system' -%}
{{- raise_exception('System role not supported') -}}
{%- endif -%}
{%- for message in messages -%}
{%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
{{- '<start_of_turn>' + role + '\\n' + message['content'] + '<end_of_turn>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<start_of_turn>model\\n' -}}{%- endif -%}
"""
MISTRAL = """\
{{- bos_token -}}
{%- for message in messages -%}
{%- if message['role'] == 'user' -%}
{{- '[INST] ' + message['content'] + ' [/INST]' -}}
{%- elif message['role'] == 'assistant' -%}
{{- ' ' + message['content'] + eos_token -}}
{%- else -%}
{{- raise_exception('Only user and assistant roles are supported!') -}}
{%- endif -%}
{%- endfor -%}
"""
STYLES = {
    # template, special tokens, beginning and end of a sequence, what ends a turn, what the
    # template puts between its heading and the text
    "chatml": (CHATML, ["<|im_start|>", "<|im_end|>"], None, "<|im_end|>", ""),
    "llama3": (LLAMA3, ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>",
                        "<|eot_id|>"], "<|begin_of_text|>", "<|eot_id|>", ""),
    "gemma": (GEMMA, ["<bos>", "<start_of_turn>", "<end_of_turn>"], "<bos>", "<end_of_turn>", ""),
    "mistral": (MISTRAL, ["<s>", "</s>"], "<s>", "</s>", " "),
}


def load_tiny() -> Any:
    return AutoTokenizer.from_pretrained(TINY)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tiny()


@pytest.fixture(scope="module")
def in_style() -> Callable[[str], tuple[Any, str, str]]:
    """A tokenizer with the special tokens of a model family, its end of turn, and its lead."""
    made: dict[str, tuple[Any, str, str]] = {}

    def make(style: str) -> tuple[Any, str, str]:
        if style not in made:
            template, special, bos, end, lead = STYLES[style]
            tokenizer = load_tiny()
            tokenizer.add_special_tokens({"additional_special_tokens": special})
            if bos:
                tokenizer.bos_token = bos
            tokenizer.eos_token = end
            tokenizer.chat_template = template
            made[style] = tokenizer, end, lead
        return made[style]

    return make


def renderer(tokenizer: Any, template: str | None = None, render: str = "auto",
             system: str | None = None) -> Renderer:
    return Renderer(tokenizer, template=template, render=render, system=system)


def tokens_of(made: Renderer, example: Any) -> Tokens:
    [tokens] = made.tokenise([made.render(example)])
    return tokens


def trained_runs(tokenizer: Any, tokens: Tokens) -> list[str]:
    """The text of each stretch of supervised tokens."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], tokens.supervised.astype(int), [0]])))
    return [tokenizer.decode(tokens.ids[start:end], skip_special_tokens=False)
            for start, end in edges.reshape(-1, 2)]


def without_marks(template: str) -> str:
    return re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", template)


# Control tokens in the text of a row would be tokens of control; they are another matter.
said = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<[|"), max_size=30)
# White space at the edge can share a token with the template's own.
clear = said.filter(lambda text: text.strip() == text != "")


def turns(texts: st.SearchStrategy[str], system: bool = True) -> st.SearchStrategy[Conversation]:
    pair = st.tuples(texts, texts)
    openings = st.none() | texts if system else st.none()
    return st.builds(
        lambda opening, pairs: Conversation(tuple(
            ([Message("system", opening)] if opening else [])
            + [message for question, answer in pairs
               for message in (Message("user", question), Message("assistant", answer))]
        )),
        openings, st.lists(pair, min_size=1, max_size=3),
    )


def answers(conversation: Conversation) -> list[str]:
    return [m.content for m in conversation.messages if m.role == "assistant"]


# ---- the embedded tokenizer


@given(turns(clear))
def test_supervised_tokens_are_the_assistants_text_and_the_end_of_turn(
    tokenizer: Any, conversation: Conversation,
) -> None:
    tokens = tokens_of(renderer(tokenizer), conversation)
    assert trained_runs(tokenizer, tokens) == [
        answer + "<|end|>" for answer in answers(conversation)]


@given(turns(said))
def test_the_mask_is_the_one_transformers_makes(tokenizer: Any, conversation: Conversation) -> None:
    tokens = tokens_of(renderer(tokenizer), conversation)
    theirs = tokenizer.apply_chat_template(
        conversation.as_dicts(), tokenize=True, return_dict=True,
        return_assistant_tokens_mask=True)
    assert tokens.ids.tolist() == theirs["input_ids"]
    assert tokens.supervised.astype(int).tolist() == theirs["assistant_masks"]


@given(turns(said))
def test_marks_and_rendered_prefixes_give_the_same_mask(
    tokenizer: Any, conversation: Conversation,
) -> None:
    marked = renderer(tokenizer)
    derived = renderer(tokenizer, without_marks(tokenizer.chat_template))
    assert marked.way == "marks"
    assert derived.way == "derived"
    ours, other = tokens_of(marked, conversation), tokens_of(derived, conversation)
    assert ours.ids.tolist() == other.ids.tolist()
    assert ours.supervised.tolist() == other.supervised.tolist()


@given(said, turns(said, system=False))
def test_a_conversation_that_starts_with_the_assistant_has_the_same_mask_both_ways(
    tokenizer: Any, greeting: str, conversation: Conversation,
) -> None:
    row = Conversation((Message("assistant", greeting), *conversation.messages))
    marked = tokens_of(renderer(tokenizer), row)
    derived = tokens_of(renderer(tokenizer, without_marks(tokenizer.chat_template)), row)
    assert marked.supervised.tolist() == derived.supervised.tolist()


@given(turns(said))
def test_several_rows_at_once_are_tokenised_as_each_alone(
    tokenizer: Any, conversation: Conversation,
) -> None:
    made = renderer(tokenizer)
    rows = [conversation, Passage("some text"), conversation, Exchange("q", "a")]
    together = made.tokenise([made.render(row) for row in rows])
    for row, tokens in zip(rows, together, strict=True):
        alone = tokens_of(made, row)
        assert tokens.ids.tolist() == alone.ids.tolist()
        assert tokens.supervised.tolist() == alone.supervised.tolist()


def test_spaces_are_trained_where_a_tokenizer_trims_them_off_its_offsets() -> None:
    tokenizer = trimming()
    row = Conversation((Message("user", "code"),
                        Message("assistant", "def f():\n        return  1\n    \nend")))
    offsets = tokenizer(row.messages[1].content, return_offsets_mapping=True)["offset_mapping"]
    assert any(start == end for start, end in offsets), "the tokenizer does not trim"
    assert trained_runs(tokenizer, tokens_of(renderer(tokenizer), row)) == [
        row.messages[1].content + "<|end|>"]


def trimming() -> Any:
    made = load_tiny()
    made.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return made


def of_words(prepend: bool) -> Any:
    """A tokenizer that writes spaces as part of words, and rare characters byte by byte.

    `prepend`: whether the leading space is a normaliser's, as in older models, or Metaspace's.
    """
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    if prepend:
        backend.normalizer = normalizers.Sequence([
            normalizers.NFKD(), normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    backend.decoder = decoders.Metaspace()
    every_byte = [f"<0x{byte:02X}>" for byte in range(256)]
    backend.train_from_iterator(["a b ab abc  x, xy. some words and more words"] * 9,
                                trainers.BpeTrainer(vocab_size=330, special_tokens=[
                                    "<unk>", "<s>", "</s>", *every_byte]))
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


WAYS = {"bytes": load_tiny, "bytes, trimmed": trimming, "words": lambda: of_words(False),
        "words, prepended": lambda: of_words(True)}
pieces = st.sampled_from(["a", "b", "ab", " ", "  ", "\n", "\n\n ", "\t", "é", "e\u0301", "日本",
                          "😀", "👩‍👩‍👧", "🙂🏽", "▁", "<|end|>", "</s>", "x, xy.", " words ", "0"])


@pytest.fixture(scope="module")
def encoders() -> dict[str, Encoder]:
    return {name: Encoder(make()) for name, make in WAYS.items()}


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=100, deadline=None)
@given(text=st.lists(pieces, max_size=12).map("".join), is_chat=st.booleans(), data=st.data())
def test_the_mask_is_the_one_that_all_offsets_give(
    encoders: dict[str, Encoder], way: str, text: str, is_chat: bool, data: Any,
) -> None:
    place = st.integers(0, len(text))
    spans = tuple(Span(*sorted(ends), weight) for *ends, weight in data.draw(st.lists(
        st.tuples(place, place, st.sampled_from([0.0, 0.5, 1.0])), max_size=3)))
    tokenizer = encoders[way].tokenizer
    [made] = tokenise([Rendered(text, spans, is_chat)], encoders[way], train_end=True)
    wanted = tokenizer(text, add_special_tokens=not is_chat, return_offsets_mapping=True)
    weights = weights_by_offsets(spans, wanted["offset_mapping"])
    ids = wanted["input_ids"]
    if not is_chat:
        if ids[-1:] != [tokenizer.eos_token_id]:
            ids, weights = [*ids, tokenizer.eos_token_id], np.append(weights, 0)
        weights[-1] = 1
    assert made.ids.tolist() == ids
    assert made.supervised.tolist() == (weights > 0).tolist()
    got = made.supervised if made.weights is None else made.weights
    assert got.astype(float).tolist() == weights.tolist()


class Shouting(PreTrainedTokenizerFast):
    """Reads everything in capitals, in a way that its backend knows nothing of."""

    def _encode_plus(self, text: list[str], **more: Any) -> Any:
        return super()._encode_plus([each.upper() for each in text], **more)


def test_a_tokenizer_of_its_own_kind_is_called_as_it_is(tokenizer: Any) -> None:
    own = Shouting(tokenizer_object=load_tiny().backend_tokenizer, eos_token="<|end|>")
    made = Renderer(own, template=tokenizer.chat_template, render="plain", system=None)
    for _ in range(2):
        assert own.decode(tokens_of(made, Passage("quiet")).ids) == "QUIET<|end|>"


def test_a_tokenizer_of_which_the_backend_is_set_to_cut_and_pad_does_neither() -> None:
    cutting = load_tiny()
    rows = [Rendered("some words " * n, (), True) for n in (1, 9)]
    wanted = [tokens.ids.tolist() for tokens in tokenise(rows, Encoder(load_tiny()), True)]
    encoder = Encoder(cutting)
    for _ in range(2):
        cutting.backend_tokenizer.enable_truncation(3)
        cutting.backend_tokenizer.enable_padding(length=50)
        assert [tokens.ids.tolist() for tokens in tokenise(rows, encoder, True)] == wanted


def test_special_tokens_in_the_text_are_split_where_the_tokenizer_says_so() -> None:
    splitting = load_tiny()
    splitting.split_special_tokens = True
    [tokens] = tokenise([Rendered("a<|end|>", (), True)], Encoder(splitting), True)
    assert splitting.eos_token_id not in tokens.ids
    assert tokens.ids.tolist() == splitting("a<|end|>")["input_ids"]


def test_several_templates_of_a_tokenizer_mean_the_default_one() -> None:
    several = load_tiny()
    several.chat_template = {"tool_use": "x", "default": several.chat_template}
    row = Conversation((Message("user", "q"), Message("assistant", "a")))
    assert tokens_of(renderer(several), row).ids.tolist() == \
        tokens_of(renderer(load_tiny()), row).ids.tolist()


# ---- templates of well-known families


@pytest.mark.parametrize("style", STYLES)
@settings(max_examples=40)
@given(data=st.data())
def test_well_known_template_styles_train_text_and_end_of_turn(
    in_style: Any, style: str, data: st.DataObject,
) -> None:
    tokenizer, end, lead = in_style(style)
    conversation = data.draw(turns(clear, system=style in ("chatml", "llama3")))
    made = renderer(tokenizer)
    tokens = tokens_of(made, conversation)
    assert trained_runs(tokenizer, tokens) == [
        lead + answer + end for answer in answers(conversation)]
    assert tokens.ids.tolist() == tokenizer.apply_chat_template(
        conversation.as_dicts(), tokenize=True, return_dict=False)


@pytest.mark.parametrize("style", STYLES)
@settings(max_examples=40)
@given(data=st.data())
def test_no_token_of_another_speaker_is_trained(
    in_style: Any, style: str, data: st.DataObject,
) -> None:
    tokenizer, _, _ = in_style(style)
    conversation = data.draw(turns(clear, system=False))
    marker = "QZ"  # in every question and in no answer
    row = Conversation(tuple(
        Message(m.role, marker + m.content if m.role == "user" else m.content.replace("Z", ""))
        for m in conversation.messages if m.role == "user" or m.content.replace("Z", "").strip()))
    if row.messages[-1].role != "assistant":
        return
    assert not any(marker in run for run in trained_runs(tokenizer, tokens_of(
        renderer(tokenizer), row)))


@pytest.mark.parametrize("style", ["chatml", "llama3"])
def test_a_first_turn_of_the_assistant_is_trained_without_its_heading(
    in_style: Any, style: str,
) -> None:
    tokenizer, end, _ = in_style(style)
    row = Conversation((Message("assistant", "Hello!"), Message("user", "Hi."),
                        Message("assistant", "What is it?")))
    assert trained_runs(tokenizer, tokens_of(renderer(tokenizer), row)) == [
        f"Hello!{end}", f"What is it?{end}"]


def test_a_first_turn_whose_beginning_cannot_be_seen_is_refused(in_style: Any) -> None:
    tokenizer, _, _ = in_style("mistral")  # writes no heading for the assistant
    row = Conversation((Message("assistant", "Hello!"),))
    with pytest.raises(BadRow, match="starts with the assistant"):
        renderer(tokenizer).render(row)


@pytest.mark.parametrize("style", ["gemma", "mistral"])
def test_what_a_template_refuses_is_a_bad_row_with_its_words(in_style: Any, style: str) -> None:
    tokenizer, _, _ = in_style(style)
    row = Conversation((Message("system", "s"), Message("user", "q"), Message("assistant", "a")))
    with pytest.raises(BadRow, match=r"refuses the row: .*supported"):
        renderer(tokenizer).render(row)


# ---- templates that cannot be trained on


FORGETFUL = """\
{%- for message in messages -%}
{%- set content = message['content'] -%}
{%- if message['role'] == 'assistant' and not loop.last -%}
{%- set content = content.split('</think>')[-1] -%}
{%- endif -%}
{{- '<|' + message['role'] + '|>\\n' + content + '<|end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>\\n' -}}{%- endif -%}
"""


def test_where_history_is_rewritten_each_turn_is_trained_as_it_is_written(tokenizer: Any) -> None:
    made = renderer(tokenizer, FORGETFUL)
    thinking = Message("assistant", "hm</think>yes")
    single = Conversation((Message("user", "q"), thinking))  # nothing earlier to rewrite
    assert trained_runs(tokenizer, tokens_of(made, single)) == ["hm</think>yes<|end|>"]
    assert not made.notices
    row = Conversation((Message("user", "q"), thinking, Message("user", "r"),
                        Message("assistant", "no")))
    assert trained_runs(tokenizer, tokens_of(made, row)) == ["yes<|end|>", "no<|end|>"]
    assert any("reasoning of earlier turns" in notice for notice in made.notices)


BY_NUMBER = """\
{%- for i in range(messages | length) -%}
{{- '<|' + messages[i]['role'] + '|>\\n' + messages[i]['content'] + '<|end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>\\n' -}}{%- endif -%}
"""


@given(turns(said))
def test_a_template_that_takes_messages_by_number_has_the_same_mask(
    tokenizer: Any, conversation: Conversation,
) -> None:
    ours = tokens_of(renderer(tokenizer, BY_NUMBER), conversation)
    other = tokens_of(renderer(tokenizer), conversation)
    assert ours.ids.tolist() == other.ids.tolist()
    assert ours.supervised.tolist() == other.supervised.tolist()


@pytest.mark.parametrize("text", ["<tool_response>\n18\n</tool_response>", "<a>z</a>", "[b]"])
def test_a_template_may_look_at_how_a_message_begins_and_ends(tokenizer: Any, text: str) -> None:
    looking = without_marks(tokenizer.chat_template).replace(
        "message['content'] + ", "message['content'] + ('!' if message['content'].startswith("
        f"{text[:1]!r}) and message['content'].endswith({text[-1:]!r}) else '') + ")
    row = Conversation((Message("user", text), Message("assistant", "yes")))
    rendered = renderer(tokenizer, looking).render(row)
    assert text + "!" in rendered.text


def test_a_turn_in_which_another_message_speaks_is_refused(tokenizer: Any) -> None:
    quoting = FORGETFUL.replace("+ content +", "+ ('You said: ' + messages[loop.index0 - 1]"
                                "['content'] + ' ' if message['role'] == 'assistant' else '') "
                                "+ content +")
    row = Conversation((Message("user", "question"), Message("assistant", "answer")))
    with pytest.raises(BadRow, match="cannot be told apart"):
        renderer(tokenizer, quoting).render(row)
    marked = quoting.replace("{{- '<|' + message['role'] + '|>", "{%- generation -%}"
                             "{{- '<|' + message['role'] + '|>").replace(
        "<|end|>\\n' -}}\n{%- endfor", "<|end|>\\n' -}}{%- endgeneration -%}\n{%- endfor")
    assert marked.count("generation -%}") == 2
    with pytest.raises(BadRow, match="text of another message"):
        renderer(tokenizer, marked).render(row)


@pytest.mark.parametrize("marks", [True, False])
def test_a_template_that_never_closes_a_turn_is_refused(tokenizer: Any, marks: bool) -> None:
    template = """\
{%- for message in messages -%}
{{- '### ' + message['role'] + ':\\n' -}}
{%- if message['role'] == 'assistant' -%}
{%- generation -%}{{- message['content'] -}}{%- endgeneration -%}
{%- else -%}{{- message['content'] -}}{%- endif -%}
{{- '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '### assistant:\\n' -}}{%- endif -%}
"""
    made = renderer(tokenizer, template if marks else without_marks(template))
    with pytest.raises(BadRow, match="never learn to stop"):
        made.render(Conversation((Message("user", "q"), Message("assistant", "a"))))


def test_what_stands_behind_the_last_turn_is_not_trained(tokenizer: Any) -> None:
    template = without_marks(tokenizer.chat_template).replace("if add_gen", "if true or add_gen")
    row = Conversation((Message("user", "q"), Message("assistant", "a")))
    made = renderer(tokenizer, template)
    assert made.render(row).text.endswith("<|end|>\n<|assistant|>\n")
    assert trained_runs(tokenizer, tokens_of(made, row)) == ["a<|end|>"]


def test_an_end_of_turn_that_stands_just_after_the_mark_is_trained(tokenizer: Any) -> None:
    template = tokenizer.chat_template.replace(
        "{{- message['content'] + '<|end|>' -}}\n{%- endgeneration -%}",
        "{{- message['content'] -}}{%- endgeneration -%}{{- '<|end|>' -}}")
    assert template != tokenizer.chat_template
    row = Conversation((Message("user", "q"), Message("assistant", "a b")))
    assert trained_runs(tokenizer, tokens_of(renderer(tokenizer, template), row)) == ["a b<|end|>"]


@pytest.mark.parametrize("template", [
    "{{ messages[9]['content'] }}", "{% if %}", "{{ raise_exception('no') }}", "{{ 1 / 0 }}",
])
def test_a_broken_template_is_a_bad_row(tokenizer: Any, template: str) -> None:
    with pytest.raises(BadRow, match="the chat template refuses the row"):
        renderer(tokenizer, template).render(
            Conversation((Message("user", "q"), Message("assistant", "a"))))


def test_a_tokenizer_without_a_template_cannot_render_conversations() -> None:
    bare = load_tiny()
    bare.chat_template = None
    with pytest.raises(BadRow, match="no chat template"):
        renderer(bare).render(Conversation((Message("user", "q"), Message("assistant", "a"))))


# ---- prompts with completions, and plain text


@given(clear, clear, st.none() | clear)
def test_an_exchange_as_chat_is_the_conversation_of_its_parts(
    tokenizer: Any, prompt: str, completion: str, system: str | None,
) -> None:
    made = renderer(tokenizer)
    messages = (Message("user", prompt), Message("assistant", completion))
    if system:
        messages = (Message("system", system), *messages)
    one = tokens_of(made, Exchange(prompt, completion, system=system))
    other = tokens_of(made, Conversation(messages))
    assert one.ids.tolist() == other.ids.tolist()
    assert one.supervised.tolist() == other.supervised.tolist()


@given(clear, clear)
def test_an_exchange_as_plain_text_trains_the_completion_and_the_end(
    tokenizer: Any, prompt: str, completion: str,
) -> None:
    made = renderer(tokenizer, render="plain")
    tokens = tokens_of(made, Exchange(prompt + "\n", completion))
    assert tokenizer.decode(tokens.ids) == f"{prompt}\n{completion}<|end|>"
    assert trained_runs(tokenizer, tokens) == [completion + "<|end|>"]


def test_without_a_template_exchanges_are_plain_and_keep_their_own_wording() -> None:
    bare = load_tiny()
    bare.chat_template = None
    made = renderer(bare, system="Be kind.")
    tokens = tokens_of(made, Exchange("Add", "3", plain_prompt="### Add:\n"))
    assert bare.decode(tokens.ids) == "Be kind.\n\n### Add:\n3<|end|>"
    assert trained_runs(bare, tokens) == ["3<|end|>"]


@given(said.filter(str.strip))
def test_a_passage_is_trained_as_a_whole_and_ends(tokenizer: Any, text: str) -> None:
    tokens = tokens_of(renderer(tokenizer), Passage(text))
    assert tokenizer.decode(tokens.ids) == text + "<|end|>"
    assert tokens.ids[-1] == tokenizer.eos_token_id
    assert tokens.supervised.all()


def test_a_tokenizer_that_adds_its_own_special_tokens_does_not_end_a_passage_twice() -> None:
    adding = load_tiny()
    pad, end = adding.convert_tokens_to_ids(["<|pad|>", "<|end|>"])
    adding.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|pad|> $A <|end|>", special_tokens=[("<|pad|>", pad), ("<|end|>", end)])
    tokens = tokens_of(renderer(adding), Passage("some text"))
    assert tokens.ids.tolist().count(end) == 1
    assert tokens.ids[0] == pad
    assert not tokens.supervised[0], "the beginning of a sequence is given, not learnt"
    assert tokens.supervised[1:].all()


# ---- the system message of the recipe, and prompts for generation


def test_the_recipes_system_message_is_given_to_rows_that_bring_none(tokenizer: Any) -> None:
    made = renderer(tokenizer, system="Be brief.")
    pair = (Message("user", "q"), Message("assistant", "a"))
    assert made.render(Conversation(pair)).text.startswith("<|system|>\nBe brief.<|end|>")
    own = made.render(Conversation((Message("system", "Own."), *pair))).text
    assert own.startswith("<|system|>\nOwn.")
    assert "Be brief." not in own


@given(turns(said))
def test_the_prompt_is_the_text_up_to_the_last_answer(
    tokenizer: Any, conversation: Conversation,
) -> None:
    made = renderer(tokenizer)
    prompt, wanted = made.prompt(conversation)
    assert wanted == conversation.messages[-1].content
    rendered = made.render(conversation)
    assert rendered.text.startswith(prompt)
    assert rendered.spans[-1][0] == len(prompt)


def test_plain_prompts_are_what_stands_before_the_completion(tokenizer: Any) -> None:
    made = renderer(tokenizer, render="plain")
    assert made.prompt(Exchange("Q: 1+1 A: ", "2")) == ("Q: 1+1 A: ", "2")
    assert made.prompt(Passage("abcd")) == ("ab", "cd")


# ---- what is trained of a row


def say(*turns: tuple[str, str] | Message) -> Conversation:
    return Conversation(tuple(turn if isinstance(turn, Message) else Message(*turn)
                              for turn in turns))


CHAIN = say(("user", "q1"), ("assistant", "a1"), ("user", "q2"), ("assistant", "a2"),
            ("assistant", "a3"))


def made_for(tokenizer: Any, template: str | None = None, **more: Any) -> Renderer:
    return Renderer(tokenizer, template=template, render="auto", system=None, **more)


@pytest.mark.parametrize("marks", [True, False])
@pytest.mark.parametrize(("train_on", "wanted"), [
    ("assistant", ["a1<|end|>", "a2<|end|>", "a3<|end|>"]),
    ("completion", ["a2<|end|>", "a3<|end|>"]),
    ("last", ["a3<|end|>"]),
])
def test_train_on_chooses_turns(tokenizer: Any, marks: bool, train_on: str,
                                wanted: list[str]) -> None:
    template = None if marks else without_marks(tokenizer.chat_template)
    tokens = tokens_of(made_for(tokenizer, template, train_on=train_on), CHAIN)
    assert trained_runs(tokenizer, tokens) == wanted
    assert tokens.weights is None


def test_train_on_all_trains_every_token(tokenizer: Any) -> None:
    made = made_for(tokenizer, train_on="all")
    for row in (CHAIN, Exchange("q", "a"), Passage("text")):
        assert tokens_of(made, row).supervised.all()
    plain = Renderer(tokenizer, template=None, render="plain", system=None, train_on="all")
    assert tokens_of(plain, Exchange("q", "a")).supervised.all()


@pytest.mark.parametrize("train_on", ["assistant", "last", "completion", "all"])
def test_a_messages_own_weight_goes_first(tokenizer: Any, train_on: str) -> None:
    row = say(("user", "q1"), Message("assistant", "a1", weight=0.5), ("user", "q2"),
              Message("assistant", "a2", weight=0))
    tokens = tokens_of(made_for(tokenizer, train_on=train_on), row)
    assert tokens.weights is not None
    assert tokenizer.decode(tokens.ids[tokens.weights == 0.5]) == "a1<|end|>"
    rest = tokenizer.decode(tokens.ids[tokens.weights == 1])
    assert ("q1" in rest) == (train_on == "all")
    assert "a2" not in rest
    assert (tokens.supervised == (tokens.weights > 0)).all()


def test_weights_of_one_need_no_weights(tokenizer: Any) -> None:
    row = say(("user", "q"), Message("assistant", "a", weight=1), Message("user", "r", weight=0),
              Message("assistant", "b"))
    tokens = tokens_of(made_for(tokenizer), row)
    assert tokens.weights is None
    assert trained_runs(tokenizer, tokens) == ["a<|end|>", "b<|end|>"]


def test_a_weight_on_someone_else_is_refused(tokenizer: Any) -> None:
    row = say(Message("user", "q", weight=1), ("assistant", "a"))
    with pytest.raises(BadRow, match="message 1 has a weight, but is of the role user"):
        made_for(tokenizer).render(row)


@pytest.mark.parametrize("marks", [True, False])
@pytest.mark.parametrize("train_on", ["assistant", "all"])
def test_the_end_of_a_turn_can_be_left_out(tokenizer: Any, marks: bool, train_on: str) -> None:
    template = None if marks else without_marks(tokenizer.chat_template)
    made = made_for(tokenizer, template, train_on=train_on, train_on_end_of_turn=False)
    runs = trained_runs(tokenizer, tokens_of(made, say(("user", "q"), ("assistant", "a b"))))
    assert runs[-1 if train_on == "assistant" else 0].endswith("a b")
    for row in (Exchange("q", "a"), Passage("text")):
        plain = Renderer(tokenizer, template=template, render="plain", system=None,
                         train_on=train_on, train_on_end_of_turn=False)
        tokens = tokens_of(plain, row)
        assert tokens.ids[-1] == tokenizer.eos_token_id
        assert not tokens.supervised[-1]
        assert tokens.supervised[-2]


# ---- nothing of a row is lost


TOOLS = ({"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}},)
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": "two"}}}


@pytest.mark.parametrize(("row", "said"), [
    (Conversation((Message("user", "q"), Message("assistant", "a")), TOOLS), "the tool add"),
    (say(("user", "q"), Message("assistant", "a", tool_calls=(CALL,))), "the call of add"),
    (say(("user", "q"), Message("assistant", "a", reasoning="hm")), "knows no reasoning"),
])
def test_what_a_template_does_not_know_is_refused(tokenizer: Any, row: Conversation,
                                                  said: str) -> None:
    with pytest.raises(BadRow, match=said):
        made_for(tokenizer).render(row)


@pytest.mark.parametrize(("change", "said"), [
    (("message['content']", "(message['content'] if loop.index != 1 else '')"), "leaves out messa"),
    (("message['content']", "message['content'] | upper"), "refuses|cannot be traced"),
    (("message['content']", "message['content'][:9]"), "changes|cannot be traced|leaves out"),
])
def test_a_template_that_loses_or_changes_text_is_refused(
    tokenizer: Any, change: tuple[str, str], said: str,
) -> None:
    template = without_marks(tokenizer.chat_template).replace(*change)
    row = say(("system", "some words of the system"), ("user", "some words of the user"),
              ("assistant", "some words of the assistant"))
    with pytest.raises(BadRow, match=said):
        made_for(tokenizer, template).render(row)


def test_rows_with_tools_take_the_template_for_tools() -> None:
    several = load_tiny()
    for_tools = "{{ tools | tojson }}<|end|>" + several.chat_template
    several.chat_template = {"default": several.chat_template, "tool_use": for_tools}
    made = made_for(several, resolve_template(None, several))
    pair = (Message("user", "q"), Message("assistant", "a"))
    assert "add" not in made.render(Conversation(pair)).text
    assert '"add"' in made.render(Conversation(pair, TOOLS)).text
    with pytest.raises(BadRow, match="the tool add"):  # the given one is meant for all rows
        made_for(several, load_tiny().chat_template + " ").render(Conversation(pair, TOOLS))


# ---- which template is meant


def test_a_template_is_found_by_name_or_path_or_given_itself(tmp_path: Path) -> None:
    tokenizer = load_tiny()
    assert resolve_template(None, tokenizer) == tokenizer.chat_template
    assert resolve_template("{{ messages }}", tokenizer) == "{{ messages }}"
    assert "<|im_start|>" in (resolve_template("chatml", tokenizer) or "")
    path = tmp_path / "own.jinja"
    path.write_text("{{ 1 }}", encoding="utf-8")
    assert resolve_template(str(path), tokenizer) == "{{ 1 }}"
    tokenizer.chat_template = {"default": "{{ 2 }}", "rag": "{{ 3 }}"}
    assert resolve_template(None, tokenizer) == "{{ 2 }}"
    assert resolve_template("rag", tokenizer) == "{{ 3 }}"
    tokenizer.chat_template = None
    assert resolve_template(None, tokenizer) is None


def test_an_unknown_template_is_refused_with_the_known_names(tmp_path: Path) -> None:
    tokenizer = load_tiny()
    tokenizer.chat_template = {"default": "{{ 2 }}", "rag": "{{ 3 }}"}
    for wrong in ("chatlm", str(tmp_path)):
        with pytest.raises(UserError) as caught:
            resolve_template(wrong, tokenizer)
        [problem] = caught.value.problems
        assert problem.where == "data.chat_template"
        assert "Jinja file" in problem.remedy
    with pytest.raises(UserError, match=r"one of default, rag, chatml"):
        resolve_template("chatlm", tokenizer)
    tokenizer.chat_template = {"rag": "{{ 3 }}"}
    with pytest.raises(UserError, match="none is the default"):
        resolve_template(None, tokenizer)

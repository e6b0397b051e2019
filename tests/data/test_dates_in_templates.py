"""A template that prints the date must not change the rows at midnight."""

from datetime import date

import pytest
from transformers import AutoTokenizer

from lorafit.data.chat import Renderer
from lorafit.data.examples import Conversation, Message
from lorafit.model.base import TINY

# In the two ways that published templates ask for the date.
GUARDED = ("{%- if not date_string is defined %}{%- if strftime_now is defined %}"
           "{%- set date_string = strftime_now(\"%d %b %Y\") %}{%- else %}"
           "{%- set date_string = '26 Jul 2024' %}{%- endif %}{%- endif %}"
           "Today: {{ date_string }}\n")
PLAIN = "Today: {{ strftime_now('%d %B %Y') }}\n"
INDIRECT = "{%- set tell = strftime_now -%}Today: {{ tell('%d %b ' ~ '%Y') }}\n"
TURNS = ("{%- for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{%- endfor %}"
         "{%- if add_generation_prompt %}<|assistant|>\n{%- endif %}")
ROW = Conversation((Message("user", "Hi"), Message("assistant", "Hello")))


@pytest.mark.parametrize(("head", "shown"), [
    (GUARDED, "Today: 03 Feb 2021"), (PLAIN, "Today: 03 February 2021"),
    (INDIRECT, "Today: 03 Feb 2021"),
])
def test_the_date_is_the_one_given(head, shown):
    renderer = Renderer(AutoTokenizer.from_pretrained(TINY), template=head + TURNS, render="auto",
                        system=None, today=date(2021, 2, 3))
    rendered = renderer.render(ROW)
    assert rendered.text.startswith(shown)
    start, end, _ = rendered.spans[0]
    assert rendered.text[start:end].strip() == "Hello<|end|>"


def test_the_date_is_today_when_none_is_given():
    renderer = Renderer(AutoTokenizer.from_pretrained(TINY), template=PLAIN + TURNS, render="auto",
                        system=None)
    assert date.today().strftime("%d %B %Y") in renderer.render(ROW).text

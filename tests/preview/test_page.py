"""The page: whole without anything else, every text escaped, every token there."""

from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from lorafit.preview.page import page
from lorafit.preview.visible import safe

VOID = {"meta", "br"}
NASTY = ["<script>alert('x')</script> \"quoted\" & 'single' </pre></body> &lt; --> ]]>",
         "a\u202eb\x1b[31m\u200bc\ttab\n\n  two lines 😀 日本 ⟦x⟧ https://example.com/?a=1&b=2"]


class Read(HTMLParser):
    """A parsed page: its tags, balanced or not, and the texts of rows and tokens."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.unbalanced: list[str] = []
        self.rows: list[str] = []
        self.titles: list[str] = []
        self.policy = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag not in VOID:
            self.open.append(tag)
        if tag == "pre":
            self.rows.append("")
        given = dict(attrs)
        if tag == "span" and "title" in given:
            self.titles.append(given["title"] or "")
        if given.get("http-equiv") == "Content-Security-Policy":
            self.policy = given["content"] or ""

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.unbalanced.append(tag)

    def handle_data(self, data: str) -> None:
        if "pre" in self.open:
            self.rows[-1] += data


@pytest.fixture
def seen(make_recipe: Callable[..., Any], preview: Callable[..., Any],
         write_rows: Callable[..., Path]) -> Any:
    rows = write_rows(["How much?", "3"], NASTY, [NASTY[1], NASTY[0]], ["<|end|>", "no"])
    return preview(make_recipe(data={"train": str(rows)}), rows=10)


def test_a_page_is_well_formed_and_needs_nothing_else(make_recipe: Callable[..., Any],
                                                      preview: Callable[..., Any]) -> None:
    text = page(preview(make_recipe()), "a title")
    read = Read(text)
    assert not read.unbalanced
    assert not read.open
    assert not read.tags & {"script", "link", "img", "iframe", "object", "embed", "base", "svg"}
    assert not read.attributes & {"src", "href", "srcdoc", "action"}
    assert not any(name.startswith("on") for name in read.attributes)
    assert read.policy.startswith("default-src 'none'")
    for address in ("http://", "https://", "//", "url(", "@import", "javascript:"):
        assert address not in text


def test_rows_are_escaped_and_whole(seen: Any, tokenizer: Any) -> None:
    text = page(seen, "<b>title</b>")
    read = Read(text)
    assert not read.unbalanced
    assert "script" not in read.tags
    assert "<script" not in text
    assert "<b>title" not in text
    assert len(read.rows) == len(seen.shown)
    for shown, row in zip(read.rows, seen.shown, strict=True):
        ids = [number for piece in row.pieces for number in piece.ids]
        decoded = tokenizer.decode(ids, skip_special_tokens=False,
                                   clean_up_tokenization_spaces=False)
        assert safe(shown) == safe(decoded)
        assert shown.replace("\n", "").replace("\t", "").isprintable()
        assert "\n" in shown


def test_every_token_says_its_id(seen: Any) -> None:
    titles = [title.split(",")[0].split()[1:] for title in Read(page(seen, "t")).titles]
    assert [int(number) for title in titles for number in title] \
        == [number for row in seen.shown for piece in row.pieces for number in piece.ids]


def test_findings_and_what_would_stop_are_on_the_page(seen: Any) -> None:
    text = page(seen, "t")
    assert "would stop training" in text
    assert "spells the special token &lt;|end|&gt;" in text
    assert str(seen.findings[0][1].places[0]) in text

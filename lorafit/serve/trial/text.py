"""Tokens to text as they come, up to a text that ends the answer."""

from collections.abc import Callable, Sequence

_BROKEN = "\ufffd"  # what a character decodes to while some of its bytes are missing

Decode = Callable[[Sequence[int]], str]


class TextStream:
    """The text of tokens that come one by one.

    All pieces together are the text of all tokens; a piece never ends within a character, nor
    within what may become one of the stop texts.

    stopped_by: the stop text that was met, None while there is none; it is left out of the text
    unless `keep_stop`.
    """

    def __init__(self, decode: Decode, stop: Sequence[str] = (), keep_stop: bool = False) -> None:
        self._decode = decode
        self._stop = [text for text in stop if text]
        self._keep_stop = keep_stop
        self._ids: list[int] = []
        self._from = self._shown = 0  # tokens before `_from` are done with, before `_shown` told
        self._held = ""
        self.stopped_by: str | None = None

    def add(self, token: int) -> str:
        """The text that is certain after one more token; empty after a stop text."""
        if self.stopped_by is not None:
            return ""
        self._ids.append(token)
        # Decoded with the tokens before, because tokenizers write a word's first token otherwise
        # at the start of a text.
        before = self._decode(self._ids[self._from : self._shown])
        text = self._decode(self._ids[self._from :])
        if len(text) <= len(before) or text.endswith(_BROKEN):
            return ""
        self._from, self._shown = self._shown, len(self._ids)
        return self._released(text[len(before) :])

    def finish(self) -> str:
        """What was held back, at the end of the answer."""
        if self.stopped_by is not None:
            return ""
        before = self._decode(self._ids[self._from : self._shown])
        rest = self._decode(self._ids[self._from :])[len(before) :]
        text = self._released(rest)
        held, self._held = self._held, ""
        return text if self.stopped_by is not None else text + held

    def _released(self, text: str) -> str:
        text = self._held + text
        self._held = ""
        places = [(text.find(stop), stop) for stop in self._stop if stop in text]
        if places:
            at, self.stopped_by = min(places)
            return text[: at + len(self.stopped_by)] if self._keep_stop else text[:at]
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        if keep:
            text, self._held = text[:-keep], text[-keep:]
        return text


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` begin `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)

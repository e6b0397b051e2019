"""Answers in the forms of OpenAI's API, whole or as they come."""

import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from lorafit.serve.trial.requests import ChatForm, CompletionForm, Model, Refused
from lorafit.serve.trial.sampling import TokenLogprob, Wanted
from lorafit.serve.trial.worker import Finish, Piece

Form = ChatForm | CompletionForm


@dataclass
class _Choice:
    """One answer so far."""

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish: Finish | None = None

    def add(self, event: Piece | Finish) -> None:
        if isinstance(event, Finish):
            self.finish = event
            return
        self.text += event.text
        self.tokens += event.tokens
        self.logprobs += event.logprobs


class Reply:
    """The reply to one request, made of the events of its answers."""

    def __init__(self, form: Form, model: Model, wanted: Sequence[Wanted]) -> None:
        self._form, self._model, self._wanted = form, model, wanted
        self._is_chat = isinstance(form, ChatForm)
        self._choices = [_Choice() for _ in wanted]
        self._first = [True] * len(wanted)
        self._head = {
            "id": f"{'chatcmpl' if self._is_chat else 'cmpl'}-{uuid.uuid4().hex}",
            "object": "chat.completion" if self._is_chat else "text_completion",
            "created": int(time.time()), "model": form.model,
        }

    def add(self, index: int, event: Piece | Finish) -> None:
        """Refused when an answer failed."""
        if isinstance(event, Finish) and event.reason == "error":
            raise Refused(event.message, 500, "internal_error")
        self._choices[index].add(event)

    def whole(self) -> dict[str, Any]:
        """The body of a reply that is not streamed."""
        reply: dict[str, Any] = {**self._head, "choices": [self._whole_choice(i)
                                           for i in range(len(self._choices))],
                 "usage": self.usage()}
        if self._form.return_token_ids and self._is_chat:
            reply["prompt_token_ids"] = list(self._wanted[0].prompt)
        return reply

    def chunks(self, index: int, event: Piece | Finish) -> Iterator[dict[str, Any]]:
        """What an event adds to a reply that is streamed."""
        if self._first[index] and self._is_chat:
            yield self._chunk(index, {"role": "assistant", "content": ""}, None, None)
        elif self._first[index] and self._form.return_token_ids:
            yield self._chunk(index, "", None, None)
        self._first[index] = False
        if isinstance(event, Finish):
            yield self._chunk(index, {} if self._is_chat else "", None, event)
        elif event.text or event.logprobs or (self._form.return_token_ids and event.tokens):
            delta = {"content": event.text} if self._is_chat else event.text
            yield self._chunk(index, delta, event, None)

    def last_chunk(self) -> dict[str, Any] | None:
        """The token counts, where a streamed request asks for them."""
        if not self._form.stream_options.get("include_usage"):
            return None
        return {**self._head, "object": self._streamed, "choices": [], "usage": self.usage()}

    def usage(self) -> dict[str, int]:
        asked = sum(len(each.prompt) for each in self._wanted)
        answered = sum(len(choice.tokens) for choice in self._choices)
        return {"prompt_tokens": asked, "completion_tokens": answered,
                "total_tokens": asked + answered}

    @property
    def _streamed(self) -> str:
        return "chat.completion.chunk" if self._is_chat else "text_completion"

    def _whole_choice(self, index: int) -> dict[str, Any]:
        choice = self._choices[index]
        finish = choice.finish or Finish("cancelled")
        said: dict[str, Any] = {"text": choice.text}
        if self._is_chat:
            said = {"message": {"role": "assistant", "content": choice.text}}
        whole: dict[str, Any] = {
            "index": index, **said, "logprobs": self._logprobs(index, choice.logprobs),
            "finish_reason": finish.reason, "stop_reason": finish.stop_reason}
        if self._form.return_token_ids:
            whole["token_ids"] = choice.tokens
            if not self._is_chat:
                whole["prompt_token_ids"] = list(self._wanted[index].prompt)
        return whole

    def _chunk(self, index: int, delta: Any, piece: Piece | None,
               finish: Finish | None) -> dict[str, Any]:
        choice: dict[str, Any] = {
            "index": index, ("delta" if self._is_chat else "text"): delta,
            "logprobs": self._logprobs(index, piece.logprobs) if piece else None,
            "finish_reason": finish.reason if finish else None,
        }
        if finish:
            choice["stop_reason"] = finish.stop_reason
        chunk: dict[str, Any] = {**self._head, "object": self._streamed, "choices": [choice]}
        if self._form.return_token_ids:
            if self._first[index]:
                holder = chunk if self._is_chat else choice
                holder["prompt_token_ids"] = list(self._wanted[index].prompt)
            choice["token_ids"] = piece.tokens if piece else []
        return chunk

    def _logprobs(self, index: int, values: list[TokenLogprob]) -> dict[str, Any] | None:
        if self._wanted[index].logprobs is None:
            return None
        spelled = self._model.prompts.spelled
        texts = spelled([value.token for value in values])
        if self._is_chat:
            return {"content": [
                {**_token(text, value.logprob), "top_logprobs": [
                    _token(other, logprob) for other, (_, logprob) in
                    zip(spelled([token for token, _ in value.top]), value.top, strict=True)]}
                for text, value in zip(texts, values, strict=True)]}
        offsets, at = [], 0
        for text in texts:
            offsets.append(at)
            at += len(text)
        return {
            "tokens": texts, "token_logprobs": [value.logprob for value in values],
            "text_offset": offsets,
            "top_logprobs": [
                dict(zip(spelled([token for token, _ in value.top]),
                         [logprob for _, logprob in value.top], strict=True)) for value in values],
        }


def _token(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode("utf-8"))}

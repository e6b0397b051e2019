"""Speakers in this process: a base and adapters on it."""

from collections.abc import Iterator, Sequence

from lorafit.serve.chat.speakers import Ended, Event, Messages, Settings, Trouble
from lorafit.serve.names import split_name
from lorafit.serve.trial import requests
from lorafit.serve.trial.models import Models
from lorafit.serve.trial.requests import ChatForm, Refused
from lorafit.serve.trial.worker import Finish


class Local:
    """A base and adapters in this process; several are answered in one batch."""

    def __init__(self, models: Models) -> None:
        self._models = models
        self.base: str | None = models.base_name

    def names(self) -> list[str]:
        return list(self._models.entries())

    def ask(self, asked: Sequence[tuple[str, Messages]], settings: Settings) -> Iterator[Event]:
        wanted = []
        for name, messages in asked:
            body = {"model": name, "messages": messages, **settings}
            try:
                form = requests.read(ChatForm, body)
                wanted.append(requests.wanted_by_chat(form, self._models.find(name),
                                                      self._models.defaults))
            except Refused as refused:
                raise Trouble(refused.message) from None
        replies = self._models.worker.submit(wanted)
        try:
            while replies.open:
                event = replies.next()
                if event is None:
                    continue
                index, said = event
                if isinstance(said, Finish):
                    if said.reason == "error":
                        raise Trouble(said.message)
                    yield index, Ended(said.reason)
                elif said.text:
                    yield index, said.text
        finally:
            replies.cancel()

    def tokens(self, name: str, messages: Messages) -> list[tuple[int, str]]:
        try:
            model = self._models.find(name)
            ids = requests.tokenised(requests.TokenizeForm(messages=list(messages)), model)
        except Refused as refused:
            raise Trouble(refused.message) from None
        return list(zip(ids, model.prompts.spelled(ids), strict=True))

    def add(self, text: str) -> str:
        name, path = split_name(text)
        try:
            self._models.load(name, path)
        except Refused as refused:
            raise Trouble(refused.message) from None
        return name

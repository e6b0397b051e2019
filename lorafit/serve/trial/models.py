"""The names that a small server answers to, and what can be loaded and unloaded while it runs."""

import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorafit.errors import UserError
from lorafit.model.base import load_for_inference, load_tokenizer
from lorafit.model.generate import end_tokens
from lorafit.model.several import SeveralAdapters
from lorafit.model.trained import AdapterSource
from lorafit.names import is_name
from lorafit.serve.lineup import Lineup, opened, other_base
from lorafit.serve.prompts import prompts_of, prompts_of_base
from lorafit.serve.trial.requests import Defaults, Model, Refused
from lorafit.serve.trial.worker import Worker


@dataclass(frozen=True)
class Entry:
    """A name: how it is asked, where its adapter lies (None: the base), and since when."""

    model: Model
    source: AdapterSource | None
    since_s: int


class Models:
    """The base and its adapters by name, with the worker that answers for them.

    Several threads may ask, load and unload at once.
    """

    def __init__(self, lineup: Lineup, max_batch: int,
                 say: Callable[[str], None] = lambda text: None) -> None:
        self.base_name = lineup.base_name
        self._lineup = lineup
        self._lock = threading.Lock()  # of loading and unloading
        # Advice to programmers that peft gives at every token.
        warnings.filterwarnings("ignore", message="Position ids are not supported")
        say(f"loading {lineup.model.base}")
        base = load_for_inference(lineup.model)
        first = next(iter(lineup.adapters.values()))
        fallback = prompts_of(first).renderer.template
        own = load_tokenizer(lineup.model)
        prompts = prompts_of_base(own, fallback)
        self._limit_tokens = context_of(base.config)
        self._vocabulary = int(base.get_input_embeddings().num_embeddings)
        self.defaults = defaults_of(base.generation_config)
        self._ends = end_tokens(base, own)
        self._entries = {self.base_name: Entry(
            Model(None, prompts, self._limit_tokens, self._vocabulary), None, int(time.time()))}
        several = SeveralAdapters(base)
        self.worker = Worker(several, lambda ids, skip: prompts.decode(
            ids, skip_special_tokens=skip), self._ends, own.pad_token_id or 0, max_batch)
        for name, source in lineup.adapters.items():
            say(f"loading {name} from {source.directory}")
            self._add(name, source)

    def entries(self) -> dict[str, Entry]:
        return dict(self._entries)

    def find(self, name: str | None) -> Model:
        """Refused, with the names that there are, when nobody is called so. None is the base."""
        entry = self._entries.get(name or self.base_name)
        if entry is None:
            raise Refused(f"no model is called {name!r}; there are {', '.join(self._entries)}", 404,
                          "model_not_found")
        return entry.model

    def load(self, name: str, path: Path, replace: bool = False) -> None:
        """Add an adapter. Refused when the name is taken or the adapter does not fit."""
        with self._lock:
            if name == self.base_name or (name in self._entries and not replace):
                raise Refused(f"The lora adapter {name!r} has already been loaded: unload it "
                              "first, or set load_inplace")
            if not is_name(name):
                raise Refused("lora_name must be 1 to 64 letters, digits, _, . and -")
            try:
                source = opened(path, None, self._lineup.model.dtype)
                problems = other_base(name, source.model, self._lineup.model, self.base_name)
                if problems:
                    raise UserError(problems=problems)
                if name in self._entries:
                    self._remove(name)
                self._add(name, source)
            except UserError as error:
                missing = not path.exists()
                raise Refused(str(error), 404 if missing else 400) from None

    def unload(self, name: str) -> None:
        """Remove an adapter. Refused when there is none of that name."""
        with self._lock:
            if name not in self._entries or name == self.base_name:
                raise Refused(f"no adapter is called {name!r}", 404, "model_not_found")
            self._remove(name)

    def _add(self, name: str, source: AdapterSource) -> None:
        prompts = prompts_of(source)
        self.worker.load(name, source.directory)
        self._entries = {**self._entries, name: Entry(
            Model(name, prompts, self._limit_tokens, self._vocabulary), source, int(time.time()))}

    def _remove(self, name: str) -> None:
        self._entries = {key: entry for key, entry in self._entries.items() if key != name}
        self.worker.unload(name)


def context_of(config: Any) -> int:
    """The most tokens that a model takes, prompt and answer together; many where it has no limit.
    """
    text = config.get_text_config()
    return int(getattr(text, "max_position_embeddings", None) or 1_000_000)


def defaults_of(settings: Any) -> Defaults:
    """What a base's generation settings say of drawing; OpenAI's defaults where they say nothing.

    Settings that do not draw say nothing: a request's default temperature stays 1.
    """
    repetition = float(getattr(settings, "repetition_penalty", None) or 1.0)
    if not getattr(settings, "do_sample", False):
        return Defaults(repetition_penalty=repetition)
    temperature = getattr(settings, "temperature", None)
    return Defaults(1.0 if temperature is None else float(temperature),
                    float(getattr(settings, "top_p", None) or 1.0),
                    int(getattr(settings, "top_k", None) or 0), repetition)

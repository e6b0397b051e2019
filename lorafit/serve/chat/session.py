"""What was said, to whom, and how the next answer is drawn."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorafit.run_dir import write_text
from lorafit.serve.chat.speakers import Messages, Speakers, Trouble

# Settings of a request: how a word is read, and what it says.
SETTINGS: dict[str, tuple[type, str]] = {
    "temperature": (float, "0 takes the most likely token at each step"),
    "top_p": (float, "draw from the most likely tokens of this total probability"),
    "top_k": (int, "draw from so many of the most likely tokens; 0 from all"),
    "min_p": (float, "draw from tokens at least this likely, relative to the most likely"),
    "max_tokens": (int, "longest answer"),
    "seed": (int, "seed of the drawing"),
    "repetition_penalty": (float, "above 1 against what stands there already"),
    "presence_penalty": (float, "against tokens that the answer has"),
    "frequency_penalty": (float, "the same, by how often"),
    "stop": (str, "a text that ends the answer"),
}


@dataclass
class Turn:
    """What the user said, and the answers by name."""

    said: str
    answers: dict[str, str] = field(default_factory=dict)


class Session:
    """A conversation with some of the speakers.

    adapter: who `adapter` means: the last one that was chosen. who: those who answer now.
    """

    def __init__(self, speakers: Speakers, system: str | None, settings: dict[str, Any]) -> None:
        self.speakers = speakers
        self.system = system
        self.settings = settings
        self.turns: list[Turn] = []
        names = speakers.names()
        if not names:
            raise Trouble("there is no model to talk to")
        others = [name for name in names if name != speakers.base]
        self.adapter: str | None = others[0] if others else None
        self.who = [self.adapter or names[0]]

    def choose(self, words: str) -> None:
        """`base`, `adapter`, `both`, or names with commas between. Trouble for anybody else."""
        names = self.speakers.names()
        chosen: list[str] = []
        for word in filter(None, (part.strip() for part in words.split(","))):
            if word in names:
                chosen.append(word)
            elif word in ("base", "adapter", "both"):
                chosen += self._meant(word)
            else:
                raise Trouble(f"nobody is called {word!r}: there are base, adapter, both, "
                              f"{', '.join(names)}")
        if not chosen:
            raise Trouble(f"name one of base, adapter, both, {', '.join(names)}")
        self.who = list(dict.fromkeys(chosen))
        adapters = [name for name in self.who if name != self.speakers.base]
        self.adapter = adapters[-1] if adapters else self.adapter

    def messages(self, name: str, said: str | None = None) -> Messages:
        """The conversation as `name` sees it, and what is said now.

        Where it gave no answer of its own, because somebody else was asked, it sees theirs.
        """
        messages: Messages = []
        if self.system:
            messages.append({"role": "system", "content": self.system})
        for turn in self.turns:
            messages.append({"role": "user", "content": turn.said})
            answer = turn.answers.get(name, next(iter(turn.answers.values()), None))
            if answer is not None:
                messages.append({"role": "assistant", "content": answer})
        if said is not None:
            messages.append({"role": "user", "content": said})
        return messages

    def set(self, words: str) -> str:
        """Change a setting: `NAME VALUE`, or `NAME default`."""
        name, _, text = words.partition(" ")
        text = text.strip()
        if name not in SETTINGS:
            raise Trouble(f"there is no setting {name!r}: there are {', '.join(SETTINGS)}")
        if text in ("default", ""):
            self.settings.pop(name, None)
            return f"{name} is the model's own again"
        try:
            self.settings[name] = SETTINGS[name][0](text)
        except ValueError:
            raise Trouble(f"{name} is a number, not {text!r}") from None
        return f"{name} {self.settings[name]}"

    def save(self, path: Path) -> None:
        """A line for each who answered: `{"model": …, "messages": […]}`, as `data.train` reads it.
        """
        if path.exists():
            raise Trouble(f"{path} already exists; nothing was overwritten")
        names = list(dict.fromkeys(name for turn in self.turns for name in turn.answers))
        if not names:
            raise Trouble("nothing was said yet")
        write_text(path, "".join(
            json.dumps({"model": name, "messages": self.messages(name)}, ensure_ascii=False) + "\n"
            for name in names))

    def load(self, path: Path) -> None:
        """Go on with a conversation that was saved."""
        try:
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()
                    if line.strip()]
            system, turns = _restored(rows)
        except (OSError, UnicodeDecodeError) as error:
            raise Trouble(f"{path} cannot be read: {error}") from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise Trouble(f"{path} holds no conversation that was saved here") from None
        self.system, self.turns = system, turns

    def _meant(self, word: str) -> list[str]:
        base, adapter = self.speakers.base, self.adapter
        wanted = {"base": [base], "adapter": [adapter], "both": [base, adapter]}[word]
        if None in wanted:
            raise Trouble(f"it is not known who {word} is: name them with a comma between: "
                          f"{', '.join(self.speakers.names())}")
        return [name for name in wanted if name is not None]


def _restored(rows: list[Any]) -> tuple[str | None, list[Turn]]:
    system: str | None = None
    turns: list[Turn] = []
    for row in rows:
        messages = list(row["messages"])
        if messages and messages[0]["role"] == "system":
            system = str(messages.pop(0)["content"])
        at = -1
        for message in messages:
            if message["role"] == "user":
                at += 1
                if at == len(turns):
                    turns.append(Turn(str(message["content"])))
                if turns[at].said != message["content"]:
                    raise ValueError
            elif message["role"] == "assistant":
                turns[at].answers[str(row["model"])] = str(message["content"])
            else:
                raise ValueError
    if not turns:
        raise ValueError
    return system, turns

"""A shipped recipe as lines, on the embedded base and on rows that lie beside it."""

import re
from dataclasses import dataclass
from pathlib import Path
from random import Random

from reliability.malformed.case import GOOD_ROWS, RECIPE, ROWS, Case, with_recipe

SHIPPED = sorted((Path(__file__).parents[3] / "recipes").glob("*.yaml"))
HELD_OUT = "held.jsonl"
_HELD_OUT_ROWS = GOOD_ROWS.replace(b"?", b" is?")
_LOCAL = {"base": "tiny", "train": ROWS, "eval": HELD_OUT, "dir": "out"}
_KEY = re.compile(r"^(\s*)([A-Za-z_]+):(.*)$")


@dataclass
class Text:
    """Lines of a recipe, and where its keys stand: (index, section, key, value)."""

    lines: list[str]

    @property
    def keys(self) -> list[tuple[int, str, str, str]]:
        found, section = [], ""
        for index, line in enumerate(self.lines):
            if (match := _KEY.match(line)) is None:
                continue
            if match[1]:
                found.append((index, section, match[2], match[3].partition(" #")[0].strip()))
            else:
                section = match[2]
        return found

    @property
    def sections(self) -> dict[str, int]:
        """The line's index of each section's name."""
        return {match[2]: index for index, line in enumerate(self.lines)
                if (match := _KEY.match(line)) and not match[1]}

    def put(self, section: str, key: str, value: str) -> int:
        """Write a key of a section, in place of what it says already; the line's index."""
        for index, inside, name, _ in self.keys:
            if (inside, name) == (section, key):
                self.lines[index] = f"  {key}: {value}"
                return index
        if section not in self.sections:
            self.lines.append(f"{section}:")
        index = self.sections[section] + 1
        self.lines.insert(index, f"  {key}: {value}")
        return index

    def drop(self, section: str, key: str) -> None:
        self.lines = [line for index, line in enumerate(self.lines)
                      if index not in [i for i, s, k, _ in self.keys if (s, k) == (section, key)]]

    def without_section(self, name: str) -> None:
        """Remove a section with everything in it."""
        start = self.sections[name]
        end = next((index for index in sorted(self.sections.values()) if index > start),
                   len(self.lines))
        del self.lines[start:end]

    @property
    def bytes(self) -> bytes:
        return ("\n".join(self.lines) + "\n").encode()

    def case(self, index: int | None = None) -> Case:
        """The case of these lines; the message has to name the line with this index."""
        return with_recipe(self.bytes, RECIPE if index is None else f"{RECIPE}:{index + 1}:",
                           **{HELD_OUT: _HELD_OUT_ROWS})


def shipped(random: Random) -> Text:
    """One of the recipes that come with lorafit, which is valid where it is laid out."""
    return local(random.choice(SHIPPED))


def local(path: Path) -> Text:
    """A recipe with its paths changed, and each list on one line."""
    lines = path.read_text(encoding="utf-8").splitlines()
    text = Text([line for line in lines if not line.startswith("    - ")])
    for index, _, key, _ in text.keys:
        if key in _LOCAL:
            text.lines[index] = f"  {key}: {_LOCAL[key]}"
        if key == "sample_prompts":
            text.lines[index] = "  sample_prompts: [x]"
    return text

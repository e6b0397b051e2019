"""What a hostile artifact is, and the place that it is put in."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reliability.hostile.running import REPOSITORY

TINY = REPOSITORY / "lorafit" / "model" / "tiny"
RECIPE = """\
model:
  base: {base}
  dtype: float32
adapter:
  rank: 2
data:
  train: rows.jsonl
training:
  steps: 1
  batch_size: 2
output:
  dir: out
"""
ROWS = "".join(json.dumps({"messages": [{"role": "user", "content": f"{n} and {n}?"},
                                        {"role": "assistant", "content": f"{2 * n}"}]}) + "\n"
               for n in range(1, 5))


@dataclass(frozen=True)
class Place:
    """work: the working directory, with rows and a recipe. evil: the artifact. canary: the file
    that its code would write. trained: a run that is fine, to be copied."""

    work: Path
    evil: Path
    canary: Path
    trained: Path

    def base(self) -> Path:
        """A copy of the embedded base as the artifact, and a recipe that names it."""
        shutil.copytree(TINY, self.evil, dirs_exist_ok=True)
        self.recipe()
        return self.evil

    def adapter(self) -> Path:
        shutil.copytree(self.trained / "adapter", self.evil, dirs_exist_ok=True)
        return self.evil

    def run(self) -> Path:
        shutil.copytree(self.trained, self.evil, dirs_exist_ok=True)
        return self.evil

    def recipe(self, base: str = "", text: str = RECIPE) -> None:
        (self.work / "r.yaml").write_text(text.replace("{base}", base or str(self.evil)))

    def code(self) -> str:
        """Python that says that it ran."""
        return f"open({str(self.canary)!r}, 'w').write('ran')\n"

    def module(self, name: str) -> None:
        (self.evil / name).write_text(self.code())


@dataclass(frozen=True)
class Artifact:
    """kind: what is attacked. make: puts it into a place, and says how lorafit is called.
    codes: exit codes that are right: 2 where it is refused, 0 where what is hostile in it is never
    looked at."""

    name: str
    kind: str
    make: Callable[[Place], list[str]]
    codes: tuple[int, ...] = (2,)


def changed(file: Path, **values: Any) -> None:
    """Set keys of a JSON object in a file."""
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def safetensors(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file with this header, and any length written before it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def tensor(first: int, last: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [first, last]}


def pickled(canary: Path) -> bytes:
    """A pickle that writes a file when it is loaded."""
    import pickle

    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return exec, (f"open({str(canary)!r}, 'w').write('ran')",)

    return pickle.dumps({"weight": Payload()})

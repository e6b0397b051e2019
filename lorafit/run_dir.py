"""The run directory: every path in it, and writes that are all or nothing.

After training the other rooms (export, evaluate, report) learn about a run through this directory
alone. Layout:

    recipe.yaml      the recipe as it ran, every `auto` and every default spelled out
    chat_template.jinja  what data.chat_template named, if anything
    record.json      decisions with reasons, versions, exact parameter counts, data counts
    metrics.jsonl    one line a step (and one an evaluation)
    samples.jsonl    answers generated during training
    held_out.jsonl   tokens of held-out rows, for verification after export
    checkpoints/     step-00000120/ …, each complete or absent
    adapter/         the result, as peft reads it
    result.json      how the run ended
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorafit.errors import MachineError, UserError

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class RunDir:
    """Paths of one run. `path` need not exist until `create` is called."""

    path: Path

    @property
    def recipe(self) -> Path:
        return self.path / "recipe.yaml"

    @property
    def chat_template(self) -> Path:
        """The template that rows were rendered with, where the recipe names one."""
        return self.path / "chat_template.jinja"

    @property
    def record(self) -> Path:
        return self.path / "record.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def samples(self) -> Path:
        return self.path / "samples.jsonl"

    @property
    def held_out(self) -> Path:
        return self.path / "held_out.jsonl"

    @property
    def result(self) -> Path:
        return self.path / "result.json"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def initial_adapter(self) -> Path:
        """Starting values of A and B, kept where they were computed from the base or the data."""
        return self.path / "initial_adapter"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def evaluation(self) -> Path:
        """The latest evaluation of the result on the run's held-out rows, in short."""
        return self.path / "evaluation.json"

    @property
    def evaluations(self) -> Path:
        """Every evaluation in full, a file each."""
        return self.path / "evaluations"

    def checkpoint(self, step: int) -> Path:
        """Directory of the checkpoint taken after optimizer step `step`."""
        return self.checkpoints / f"step-{step:08d}"

    def list_checkpoints(self) -> list[Path]:
        """Committed checkpoints, oldest first."""
        return sorted(self.checkpoints.glob("step-*"))

    def holds_a_run(self) -> bool:
        return self.recipe.exists() or self.checkpoints.exists()

    def refuse_taken(self) -> None:
        """UserError when the directory holds a run or anything else, or cannot be made."""
        if self.holds_a_run():
            raise UserError(
                "the output directory already holds a run; nothing was overwritten",
                str(self.path),
                "continue it with --resume, or choose another with --set output.dir=DIR",
            )
        refuse_target(self.path, "choose another with --set output.dir=DIR")

    def create(self) -> None:
        """Make the directory. UserError when it is taken."""
        self.refuse_taken()
        try:
            self.checkpoints.mkdir(parents=True)
        except OSError as error:
            raise UserError(
                f"the output directory cannot be made: {error.strerror}", str(self.path),
                "choose another with --set output.dir=DIR",
            ) from error


def refuse_target(path: Path, remedy: str, needs_bytes: int = 0) -> None:
    """UserError when something is at `path` already, or it cannot be made there.

    An empty directory may be. needs_bytes: what is going to be written, which has to find room.
    """
    is_empty = path.is_dir() and not any(path.iterdir())
    if path.exists() and not is_empty:
        raise UserError("already exists; nothing was overwritten", str(path), remedy)
    ancestor = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not (ancestor.is_dir() and os.access(ancestor, os.W_OK)):
        raise UserError("nothing can be written there", str(ancestor), remedy)
    free_bytes = shutil.disk_usage(ancestor).free
    if needs_bytes > free_bytes:
        raise UserError(
            f"has no room: {needs_bytes / 1e6:,.1f} MB are going to be written, "
            f"{free_bytes / 1e6:,.1f} MB are free", str(ancestor), f"make room, or {remedy}")


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text` in one rename: a reader sees the old file or the new one."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise MachineError(f"{path}: cannot be written: {error.strerror}") from error


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def append_jsonl(path: Path, value: Any) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(value, ensure_ascii=False) + "\n")


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Every complete line; one that a crash cut off has no end and is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    return [json.loads(line) for line in lines if line]


@contextmanager
def committed_directory(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a directory to fill; on leaving it is synced and renamed to `path`, or removed.

    A crash or an error inside leaves `path` as it was. With `replace` an existing directory is
    swapped out by two renames. Raises MachineError when the disk refuses.
    """
    partial = path.with_name(f".{path.name}.partial")
    replaced = path.with_name(f".{path.name}.replaced")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        yield partial
        for file in partial.rglob("*"):
            if file.is_file():
                _sync(file)
        _sync(partial)
        if replace and path.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            path.rename(replaced)
        partial.rename(path)
        _sync(path.parent)
        shutil.rmtree(replaced, ignore_errors=True)
    except OSError as error:
        raise MachineError(
            f"{path}: could not be written: {error.strerror or error}; nothing was left behind"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if replaced.exists() and not path.exists():  # the second rename failed
            replaced.rename(path)


def write_manifest(directory: Path) -> None:
    """Record the SHA-256 of every file, because a flipped bit in safetensors loads silently."""
    digests = {
        str(file.relative_to(directory)): sha256(file)
        for file in sorted(directory.rglob("*"))
        if file.is_file() and file.name != MANIFEST
    }
    write_json(directory / MANIFEST, digests)


def damage(directory: Path) -> str | None:
    """What is wrong with a directory that carries a manifest; None when every file is intact."""
    try:
        digests = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        for name, digest in digests.items():
            if not (directory / name).is_file():
                return f"{name} is missing"
            if sha256(directory / name) != digest:
                return f"{name} is damaged (its checksum differs)"
    except (OSError, ValueError, AttributeError):
        return f"{MANIFEST} is missing or unreadable"
    return None


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

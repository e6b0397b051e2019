"""The run directory: every path in it, and writes that are all or nothing.

After training the other rooms (export, evaluate, report) learn about a run through this directory
alone. Layout:

    recipe.yaml      the recipe as it ran, every `auto` and every default spelled out
    chat_template.jinja  what data.chat_template named, if anything
    record.json      decisions with reasons, versions, exact parameter counts, data counts
    metrics.jsonl    one line a step (and one an evaluation)
    samples.jsonl    answers generated during training
    held_out.jsonl   tokens of held-out rows, for verification after export
    checkpoints/     step-00000120/ …, each complete or absent; latest: the newest one's name
    memory.json      what was learnt about memory: the micro-batch that fits, and since when
    running.json     the process that trains in here; gone when it has ended as it should
    adapter/         the result, as peft reads it
    result.json      how the run ended
    trackers/        what experiment trackers keep, where the recipe names some
    token_losses.json  what `lorafit report --tokens` measured
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorafit.errors import MachineError, UserError

MANIFEST = "manifest.json"
# Ends of names, behind a dot and the name proper, of what is under way: being written, swapped out,
# taken away.
_PARTIAL, _REPLACED, _REMOVED = ".partial", ".replaced", ".removed"


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
    def latest(self) -> Path:
        """Names the newest checkpoint and the digest of its manifest."""
        return self.checkpoints / "latest"

    @property
    def memory(self) -> Path:
        return self.path / "memory.json"

    @property
    def lock(self) -> Path:
        return self.path / ".lock"

    @property
    def running(self) -> Path:
        """Who holds the lock."""
        return self.path / "running.json"

    @property
    def evaluation(self) -> Path:
        """The latest evaluation of the result on the run's held-out rows, in short."""
        return self.path / "evaluation.json"

    @property
    def evaluations(self) -> Path:
        """Every evaluation in full, a file each."""
        return self.path / "evaluations"

    @property
    def trackers(self) -> Path:
        """What experiment trackers keep on this machine, and what they call the run."""
        return self.path / "trackers"

    @property
    def token_losses(self) -> Path:
        """The loss of every token of held-out rows, with the base and with the result."""
        return self.path / "token_losses.json"

    def checkpoint(self, step: int) -> Path:
        """Directory of the checkpoint taken after optimizer step `step`."""
        return self.checkpoints / f"step-{step:08d}"

    def list_checkpoints(self) -> list[Path]:
        """Committed checkpoints, oldest first."""
        return sorted(self.checkpoints.glob("step-*"))

    def holds_a_run(self) -> bool:
        """recipe.yaml is written last of what a run begins with."""
        return self.recipe.exists()

    def holds_an_unfinished_start(self) -> bool:
        """Nothing but what a run writes before its recipe: it was killed there, and nothing is
        lost by starting again."""
        first = {path.name for path in (self.checkpoints, self.lock, self.running, self.held_out,
                                        self.chat_template)}
        return self.path.is_dir() and not any(self.checkpoints.glob("*")) and all(
            path.name in first or _is_left_over(path) for path in self.path.iterdir())

    def refuse_taken(self) -> None:
        """UserError when the directory holds a run or anything else, or cannot be made."""
        if self.holds_a_run():
            raise UserError(
                "the output directory already holds a run; nothing was overwritten",
                str(self.path),
                "continue it with --resume, or choose another with --set output.dir=DIR",
            )
        if not self.holds_an_unfinished_start():
            refuse_target(self.path, "choose another with --set output.dir=DIR")

    def create(self) -> None:
        """Make the directory. UserError when it is taken."""
        self.refuse_taken()
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
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
    partial = path.with_name(f".{path.name}{_PARTIAL}")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        _sync(path.parent)
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise MachineError(f"{path}: cannot be written: {error.strerror or error}") from error


def write_json(path: Path, value: Any) -> None:
    write_text(path, _as_json(value))


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def append_jsonl(path: Path, value: Any) -> None:
    """MachineError when the disk refuses."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(value, ensure_ascii=False) + "\n")
    except OSError as error:
        raise MachineError(f"{path}: cannot be written: {error.strerror or error}") from error


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
    partial = path.with_name(f".{path.name}{_PARTIAL}")
    replaced = path.with_name(f".{path.name}{_REPLACED}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        yield partial
        for file in partial.rglob("*"):
            _sync(file)
        _sync(partial)
        if replace and path.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            path.rename(replaced)
        partial.rename(path)
        _sync(path.parent)
        shutil.rmtree(replaced, ignore_errors=True)
    except Exception as error:
        if (reason := _refusal_of_disk(error)) is None:
            raise
        raise MachineError(
            f"{path}: could not be written: {reason}; nothing was left behind"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if replaced.exists() and not path.exists():  # the second rename failed
            replaced.rename(path)


def _refusal_of_disk(error: Exception) -> str | None:
    """What a disk said, also through safetensors; None for any other error."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    text = str(error)
    if type(error).__name__ == "SafetensorError" and "os error" in text.lower():
        return text.rpartition(": ")[2].partition(" (os error")[0]
    return None


def remove_directory(path: Path) -> None:
    """Remove a directory so that it is whole or gone, wherever this is interrupted."""
    removed = path.with_name(f".{path.name}{_REMOVED}")
    shutil.rmtree(removed, ignore_errors=True)
    path.rename(removed)
    shutil.rmtree(removed, ignore_errors=True)


def clear_left_overs(directory: Path) -> None:
    """Finish or undo what a killed process left half done in `directory`: only for whoever holds
    the run's lock."""
    for path in list(directory.glob(".*")):
        if not _is_left_over(path):
            continue
        original = path.with_name(path.name[1:].rpartition(".")[0])
        if path.name.endswith(_REPLACED) and not original.exists():
            path.rename(original)
        elif path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _is_left_over(path: Path) -> bool:
    return path.name.startswith(".") and path.name.endswith((_PARTIAL, _REPLACED, _REMOVED))


def refuse_full_disk(directory: Path, needs_bytes: int, what: str, remedy: str) -> None:
    """MachineError unless `needs_bytes` are free where `directory` lies, or is going to."""
    ancestor = next(place for place in (directory, *directory.absolute().parents)
                    if place.exists())
    free_bytes = shutil.disk_usage(ancestor).free
    if free_bytes < needs_bytes:
        raise MachineError(f"{directory}: no room for {what}: it takes {needs_bytes / 1e6:,.1f} MB "
                           f"and {free_bytes / 1e6:,.1f} MB are free\n    {remedy}")


def size_bytes(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())


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
        text = (directory / MANIFEST).read_text(encoding="utf-8")
        digests = json.loads(text)
        if _as_json(digests) != text:  # not one bit of it may differ from what was written
            return f"{MANIFEST} is damaged"
        items = list(digests.items())
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        return f"{MANIFEST} cannot be read: {error}"
    for name, digest in items:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            return f"{MANIFEST} names a file outside the directory: {name}"
        try:
            if sha256(directory / name) != digest:
                return f"{name} is damaged (its checksum differs)"
        except FileNotFoundError:
            return f"{name} is missing"
        except (OSError, ValueError) as error:
            return f"{name} cannot be read: {error}"
    return None


def damage_if_listed(directory: Path) -> str | None:
    """The same for a directory that may be of an earlier version, without a manifest: None then."""
    return damage(directory) if (directory / MANIFEST).exists() else None


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _as_json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

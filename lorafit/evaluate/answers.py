"""Answers of a model to rows, batch by batch, kept on disk until the evaluation is complete."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lorafit.evaluate.contenders import Contender
from lorafit.evaluate.rows import Row
from lorafit.model.generate import Answered, Sampling, answer_batch, batches_of
from lorafit.run_dir import append_jsonl, read_jsonl, write_text


class Kept:
    """Batches of answers that were already given, so that an interrupted evaluation goes on.

    A batch counts when the same contenders were asked the same prompts in the same batches. The
    pattern that answers are compared by does not matter: asked again with another one, what is
    there is used. Without a folder nothing is kept.
    """

    def __init__(self, folder: Path | None, key: str) -> None:
        self._answers: dict[tuple[str, int], list[Answered]] = {}
        self._path: Path | None = None
        if folder is None:
            return
        self._path = folder / f".unfinished-{key[:16]}.jsonl"
        lines = read_jsonl(self._path)
        for line in lines:
            self._answers[line["model"], line["batch"]] = [
                Answered(**each) for each in line["answers"]]
        folder.mkdir(exist_ok=True)
        if lines:  # again without the half line that an interruption may have left
            write_text(self._path, "".join(json.dumps(line) + "\n" for line in lines))

    def get(self, model: str, batch: int) -> list[Answered] | None:
        return self._answers.get((model, batch))

    def put(self, model: str, batch: int, answers: list[Answered]) -> None:
        if self._path is not None:
            append_jsonl(self._path, {"model": model, "batch": batch,
                                      "answers": [asdict(each) for each in answers]})

    def discard(self) -> None:
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def key_of(rows: Sequence[Row], contenders: Sequence[Contender], max_new_tokens: int,
           batch_size: int, device: str) -> str:
    """Changes with anything that decides what is answered."""
    parts = [[row.prompt for row in rows], [each.identity() for each in contenders],
             max_new_tokens, batch_size, device]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def answers_of(model: Any, name: str, tokenizer: Any, rows: Sequence[Row], max_new_tokens: int,
               batch_size: int, kept: Kept, advance: Callable[[int], None]) -> list[Answered]:
    """What a model answers to each row. `advance` is told how many rows more are answered."""
    found: dict[int, Answered] = {}
    prompts = [row.prompt or "" for row in rows]
    for number, batch in enumerate(_batches(rows, batch_size)):
        answers = kept.get(name, number)
        if answers is None:
            answers = answer_batch(model, tokenizer, [prompts[i] for i in batch],
                                   Sampling(max_new_tokens), is_chat=rows[batch[0]].is_chat, seed=0)
            kept.put(name, number, answers)
        found.update(zip(batch, answers, strict=True))
        advance(len(batch))
    return [found[i] for i in range(len(rows))]


def _batches(rows: Sequence[Row], batch_size: int) -> list[list[int]]:
    """Rows of a chat and others are tokenised differently, so they do not share a batch."""
    batches = []
    for is_chat in (True, False):
        chosen = [i for i, row in enumerate(rows) if row.is_chat is is_chat]
        batches += [[chosen[i] for i in batch] for batch in batches_of(
            [rows[i].prompt or "" for i in chosen], batch_size)]
    return batches

"""Memory that runs out in a random micro-batch, once or from there on."""

import shutil

from reliability.inject import Injection
from reliability.row import Row, Setting, Tally
from reliability.subject import Lorafit, each, last_words, uninterrupted

STEPS = 10
LIMIT = 1e-5


def ask(setting: Setting, times: int) -> Tally:
    """Rows padded, without padding, and packed. No dropout: masks belong to micro-batches."""
    subjects = [Lorafit(setting.work / batching, {
        "adapter": {"dropout": 0.0}, "data": {"eval": str(setting.work / batching / "eval.jsonl")},
        "training": {"batching": batching, "checkpoint_every": 5}}, STEPS)
        for batching in ("padded", "padding_free", "packed")]
    wholes = [subject.lines(uninterrupted(subject).run) for subject in subjects]
    largest = [0.0]

    def case(number: int) -> str | None:
        draw = setting.draw("out of memory", number)
        subject, whole = subjects[number % 3], wholes[number % 3]
        run = subject.folder / f"run-{number}"
        accumulated = 1 if subject.folder.name == "packed" else 2
        asked = Injection(
            "memory", draw.randint(1, STEPS), micro=draw.randrange(accumulated),
            rows=draw.choice((0, 1, 2)), backward=draw.random() < 0.5,
            of_allocator=draw.random() < 0.5)
        where = f"{subject.folder.name}, step {asked.step}, micro-batch {asked.micro}"
        process = subject.start(run, injection=asked)
        if code := process.wait():
            return f"{where}: exit {code}: {last_words(process)}"
        if "out of memory in step" not in process.said():
            return f"{where}: nothing was said"
        if not (run / "memory.json").exists():
            return f"{where}: what was learnt is not in the run directory"
        lines = subject.lines(run)
        if [line["supervised_tokens"] for line in lines] != [
                line["supervised_tokens"] for line in whole]:
            return f"{where}: other rows"
        difference = max(abs(a["loss"] - b["loss"]) for a, b in zip(lines, whole, strict=True))
        largest[0] = max(largest[0], difference)
        if difference > LIMIT:
            return f"{where}: a loss differs by {difference:.2e}"
        shutil.rmtree(run)
        return None

    tally = each(setting, times, case)
    tally.remarks.append(f"largest difference of any step's loss: {largest[0]:.1e}")
    return tally


ROW = Row(
    "out-of-memory", "out of memory at a random micro-batch, once or from there on",
    "finished with the same rows, every loss within 1e-5, what was learnt is kept", 20, 3, ask)

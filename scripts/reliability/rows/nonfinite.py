"""Numbers that are not finite, put into a loss, a gradient or a weight of a random step."""

import json
import re
import shutil

from reliability.inject import Injection
from reliability.row import Row, Setting, Tally
from reliability.subject import (
    Lorafit,
    Peer,
    each,
    finish,
    last_words,
    not_finite,
    uninterrupted,
)

STEPS = 10
# In a weight: by the update, or after it and before anything is saved.
PLACES = ("loss", "gradient", "update", "weight")


def injection(setting: Setting, number: int, places: tuple[str, ...] = PLACES) -> Injection:
    draw = setting.draw("not finite", number)
    return Injection(places[number % len(places)], draw.randint(1, STEPS - 1),
                     draw.choice(("nan", "inf", "-inf")), micro=draw.randrange(2),
                     seed=draw.randrange(1000))


def ask(setting: Setting, times: int) -> Tally:
    subject = Lorafit(setting.work, steps=STEPS)
    whole = uninterrupted(subject)

    def case(number: int) -> str | None:
        asked = injection(setting, number)
        where = f"{asked.value} in a {asked.what} of step {asked.step}"
        run = subject.folder / f"run-{number}"
        process = subject.start(run, injection=asked)
        code = process.wait()
        if code != 4:
            return f"{where}: exit {code}: {last_words(process)}"
        errors = process.errors()
        named = [int(step) for step in re.findall(r"step (\d+)", errors)]
        if not set(named) & {asked.step, asked.step + 1}:
            return f"{where}: the step is not named: {last_words(process)}"
        if asked.what in ("update", "weight") and "_proj" not in errors:
            return f"{where}: the layer is not named: {last_words(process)}"
        if asked.what in ("loss", "gradient") and "train.jsonl:" not in errors:
            return f"{where}: no row is named: {last_words(process)}"
        if found := not_finite(run):
            return f"{where}: committed in {found[0]}"
        if subject.saved_step(run) > asked.step:
            return f"{where}: went on to step {subject.saved_step(run)}"
        if subject.saved_step(run) < asked.step - 1:
            return f"{where}: only step {subject.saved_step(run)} is kept"
        problem = finish(subject, run, whole.digest)
        if problem is not None:
            return f"{where}: without it: {problem}"
        shutil.rmtree(run)
        return None

    return each(setting, times, case)


def of_peer(setting: Setting, times: int) -> Tally:
    """An error is as good as any stop; what is wrong is to save it, or to end as if all was
    well."""
    subject = Peer(setting.work, {"dropout": 0.0}, steps=STEPS)
    uninterrupted(subject)

    def case(number: int) -> str | None:
        asked = injection(setting, number, ("loss", "gradient", "weight"))
        where = f"{asked.value} in a {asked.what} of step {asked.step}"
        run = subject.folder / f"run-{number}"
        code = subject.start(run, injection=asked).wait()
        found = not_finite(run)
        if found:
            return f"{where}: exit {code}, {len(found)} files that are not finite, last logged " \
                   f"loss {_last_loss(run)}"
        shutil.rmtree(run)
        return None

    return each(setting, times, case)


def _last_loss(run) -> object:
    states = sorted(run.glob("checkpoint-*/trainer_state.json"), key=lambda path: len(str(path)))
    history = json.loads(states[-1].read_text())["log_history"] if states else []
    return history[-1].get("loss") if history else None


ROW = Row(
    "not-finite", "nan or inf put into a loss, a gradient or a weight of a random step",
    "exit 4 within one step that is named, nothing of it committed, the run can go on", 50, 4, ask,
    of_peer)

"""Checkpoint files that are gone, emptied, cut or have one bit turned over."""

import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from reliability.processes import wait_until
from reliability.row import Row, Setting, Tally
from reliability.subject import Lorafit, Peer, Subject, each, finish, uninterrupted

STEPS, STOPPED_AT = 12, 6
PLACES = 100  # where a file is cut, and bits that are turned over
SHARE = 0.04  # of the cases, beside one of each kind for each file, that are really resumed
MANY = 10_000  # more than there are


@dataclass(frozen=True)
class Damage:
    """kind: deleted, emptied, cut (to `at` bytes) or flipped (bit `at`). resumed: really resumed,
    and not only looked at."""

    file: str
    kind: str
    at: int = 0
    resumed: bool = False

    def __str__(self) -> str:
        return f"{self.file} {self.kind}" + (f" at {self.at}" if self.at else "")

    def do(self, path: Path, content: bytes) -> None:
        if self.kind == "deleted":
            path.unlink()
        elif self.kind in ("emptied", "cut"):
            path.write_bytes(content[:self.at])
        else:
            changed = bytearray(content)
            changed[self.at // 8] ^= 1 << self.at % 8
            path.write_bytes(changed)


def ask(setting: Setting, times: int) -> Tally:
    """Every case is shown to the function that lorafit itself chooses a checkpoint with; of each
    file and kind one, and a share of all others, is resumed to the end."""
    from lorafit.run_dir import RunDir, damage
    from lorafit.train.checkpoint import newest_good_checkpoint

    subject = Lorafit(setting.work, steps=STEPS)
    whole = uninterrupted(subject)
    stopped = _stopped(subject)
    run = RunDir(stopped)
    newest, before = run.list_checkpoints()[-1], run.list_checkpoints()[-2]
    files = [*sorted(path.name for path in newest.iterdir()), run.latest.name]

    def path_of(file: str) -> Path:
        return run.latest if file == run.latest.name else newest / file

    def looked_at(case: Damage) -> str | None:
        path = path_of(case.file)
        content = path.read_bytes()
        try:
            case.do(path, content)
            good, skipped = newest_good_checkpoint(run)
        finally:
            path.write_bytes(content)
        if case.file == run.latest.name:
            expected, named = newest, case.file
        else:
            expected, named = before, newest.name
        if not any(named in line for line in skipped):
            return f"{case}: not said"
        if good != expected or damage(good) is not None:
            return f"{case}: would go on from {good}"
        return None

    def resumed(case: Damage, copy: Path) -> str | None:
        path = copy / path_of(case.file).relative_to(stopped)
        case.do(path, path.read_bytes())
        problem = finish(subject, copy, whole.digest)
        if problem is None and "skipped" not in _said(subject, copy):
            problem = "the resumed run says nothing of it"
        return None if problem is None else f"{case}: {problem}"

    tally = _ask(setting, times, {file: path_of(file).stat().st_size for file in files}, stopped,
                 looked_at, resumed)
    tally.remarks.insert(0, f"files: {', '.join(files)}")
    return tally


def _said(subject: Subject, run: Path) -> str:
    return (subject.folder / f"{run.name}.out").read_text(errors="replace") + \
        (subject.folder / f"{run.name}.err").read_text(errors="replace")


def of_peer(setting: Setting, times: int) -> Tally:
    """Every case is resumed. It need not fall back: to refuse, by whatever error, is as good as a
    result that is right. Only the files that it reads again are damaged."""
    subject = Peer(setting.work, {"dropout": 0.0}, steps=STEPS)
    whole = uninterrupted(subject)
    stopped = _stopped(subject)
    newest = max(stopped.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    read_again = ("adapter_model.safetensors", "adapter_config.json", "optimizer.pt",
                  "scheduler.pt", "rng_state.pth", "trainer_state.json")
    wrong = []

    def resumed(case: Damage, copy: Path) -> str | None:
        path = copy / newest.name / case.file
        case.do(path, path.read_bytes())
        problem = finish(subject, copy, whole.digest)
        if problem is not None and problem.startswith("other bytes"):
            wrong.append(case)
            return f"{case}: a wrong result, silently"
        return None

    sizes = {file: (newest / file).stat().st_size for file in read_again}
    tally = _ask(setting, min(times, 60), sizes, stopped, None, resumed)
    tally.there_are = None
    tally.remarks.append(f"{len(wrong)} silently wrong; an error counts as detected")
    return tally


def _stopped(subject: Subject) -> Path:
    """A run that was killed halfway, with a checkpoint of each step."""
    run = subject.folder / "stopped"
    process = subject.start(run)
    wait_until(lambda: subject.saved_step(run) >= STOPPED_AT or not process.is_running(), 120)
    process.send(signal.SIGKILL)
    process.wait()
    for left in run.glob("checkpoints/.*"):
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    return run


def _ask(setting: Setting, times: int, sizes: dict[str, int], stopped: Path,
         looked_at: Callable[[Damage], str | None] | None,
         resumed: Callable[[Damage, Path], str | None]) -> Tally:
    cases = _cases(setting, sizes)
    chosen = cases if times >= len(cases) else setting.draw("damaged").sample(cases, times)
    tally = Tally(there_are=len(cases))
    problems: dict[Damage, str | None] = {}
    if looked_at is not None:  # one at a time: the files are damaged where they are
        problems = {case: looked_at(case) for case in chosen}
    again = [case for case in chosen if looked_at is None or case.resumed]

    def case(number: int) -> str | None:
        copy = stopped.with_name(f"run-{number}")
        shutil.copytree(stopped, copy)
        problem = resumed(again[number], copy)
        if problem is None:
            shutil.rmtree(copy)
        return problem

    runs = each(setting, len(again), case)
    if looked_at is None:
        tally = runs
    else:
        bad = dict(zip(again, _by_number(runs, len(again)), strict=True))
        for each_case in chosen:
            tally.count(problems[each_case] or bad.get(each_case))
    tally.remarks.append(f"{len(chosen)} of {len(cases)} cases asked, {len(again)} of them resumed "
                         f"to the end")
    return tally


def _by_number(tally: Tally, count: int) -> list[str | None]:
    found: list[str | None] = [None] * count
    for problem in tally.problems:
        found[int(problem.partition(":")[0].lstrip("#"))] = problem
    return found


def _cases(setting: Setting, sizes: dict[str, int]) -> list[Damage]:
    cases = []
    for file, size in sizes.items():
        draw = setting.draw("damage", file)
        cuts = sorted(draw.sample(range(1, size), min(PLACES, size - 1)))
        bits = sorted(draw.sample(range(8 * size), min(PLACES, 8 * size)))
        groups = [[Damage(file, "deleted")], [Damage(file, "emptied")],
                  [Damage(file, "cut", at) for at in cuts],
                  [Damage(file, "flipped", at) for at in bits]]
        for group in groups:
            sure = draw.randrange(len(group))
            cases += [Damage(each.file, each.kind, each.at,
                             resumed=number == sure or draw.random() < SHARE)
                      for number, each in enumerate(group)]
    return cases


ROW = Row(
    "damaged", "every file of the newest checkpoint × {deleted, emptied, cut at 100 places, 100 "
    "flipped bits}",
    "detected and said, the last good one taken, the same bytes in the end", MANY, 40, ask, of_peer)

"""Hostile artifacts, each given to the real command line."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from reliability.hostile import adapters, bases, runs, texts
from reliability.hostile.artifact import ROWS, Artifact, Place
from reliability.hostile.running import Seen, run_lorafit
from reliability.row import Row, Setting, Tally

ARTIFACTS: tuple[Artifact, ...] = (*bases.ARTIFACTS, *adapters.ARTIFACTS, *texts.ARTIFACTS,
                                   *runs.ARTIFACTS)


def trained_run(folder: Path) -> Path:
    """A small run that is fine, of which adapters and run directories are copied."""
    folder.mkdir(parents=True, exist_ok=True)
    place = Place(folder, folder / "none", folder / "canary", folder / "out")
    place.recipe("tiny")
    (folder / "rows.jsonl").write_text(ROWS)
    seen = run_lorafit(["train", "r.yaml", "--set", "data.eval_fraction=0.25"], folder)
    if seen.code != 0:
        raise RuntimeError(f"the run that artifacts are made of failed: {seen.error}")
    return folder / "out"


def problem_of(artifact: Artifact, folder: Path, trained: Path) -> str | None:
    """What went wrong when lorafit was given an artifact; None when it held."""
    work = folder / "work"
    work.mkdir(parents=True)
    (work / "rows.jsonl").write_text(ROWS)
    place = Place(work, folder / "evil", folder / "canary", trained)
    place.recipe("tiny")
    place.evil.mkdir()
    arguments = artifact.make(place)
    before = _listed(work)
    seen = run_lorafit(arguments, work, artifact=place.evil)
    wrong = _wrong(artifact, seen, place)
    if left := _listed(work) - before:
        wrong.append(f"left behind: {sorted(left)[:3]}")
    return f"{artifact.name}: {'; '.join(wrong)}" if wrong else None


def _listed(folder: Path) -> set[str]:
    """Everything in a directory but the cache and temporary files."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")
            if path.relative_to(folder).parts[0] not in (".cache", ".tmp")}


def _wrong(artifact: Artifact, seen: Seen, place: Place) -> list[str]:
    wrong = []
    if place.canary.exists() or seen.of_kind("code"):
        wrong.append(f"its code ran {seen.of_kind('code')[:2]}")
    if programs := [one for one in seen.of_kind("program") if "('uname'," not in one]:
        wrong.append(f"programs were started: {programs[:2]}")
    if sockets := seen.of_kind("socket"):
        wrong.append(f"sockets were opened: {sockets[:2]}")
    allowed = [place.work]  # of which nothing may be left, but for the cache
    if 0 in artifact.codes:
        allowed.append(place.evil)  # the run itself, which goes on
    if outside := seen.written_outside(*allowed):
        wrong.append(f"written: {outside[:3]}")
    if seen.code not in artifact.codes:
        wrong.append(f"exit code {seen.code}: {seen.error.strip()[-300:]}")
    if "Traceback" in seen.error + seen.output:
        wrong.append(f"a traceback: {seen.error.strip()[-300:]}")
    if seen.code == 2 and not seen.error.startswith("error: "):
        wrong.append(f"no message: {(seen.error + seen.output)[:200]}")
    return wrong


def ask(setting: Setting, times: int) -> Tally:
    """Every artifact, or as many of them as wanted, of all kinds in turn."""
    trained = trained_run(setting.work / "trained")
    chosen = chosen_of(times)
    tally = Tally()

    def one(numbered: tuple[int, Artifact]) -> str | None:
        folder = setting.work / f"{numbered[0]:03d}"
        try:
            return problem_of(numbered[1], folder, trained)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    with ThreadPoolExecutor(setting.jobs) as pool:
        for problem in pool.map(one, enumerate(chosen)):
            tally.count(problem)
    tally.remarks.append(f"{len({artifact.kind for artifact in chosen})} kinds of attack")
    return tally


def chosen_of(times: int) -> list[Artifact]:
    """So many artifacts, one of each kind before a second one of any."""
    rounds: dict[str, int] = {}
    order = []
    for artifact in ARTIFACTS:
        rounds[artifact.kind] = rounds.get(artifact.kind, 0) + 1
        order.append((rounds[artifact.kind], artifact))
    return [artifact for _, artifact in sorted(order, key=lambda pair: pair[0])][:times]


ROW = Row("hostile", f"{len(ARTIFACTS)} hostile artifacts: pickles, auto_map, private keys, "
          "kernels, YAML tags, template escapes and bombs, names that climb out, lying headers",
          "code run 0, files outside 0, sockets 0, exit 2 with one message",
          times=len(ARTIFACTS), times_in_tests=8, ask=ask)

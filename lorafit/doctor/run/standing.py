"""Where a run stands, and what to do next."""

import shlex
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lorafit.doctor.finding import Finding, Section
from lorafit.doctor.run.seen import Seen
from lorafit.run_dir import RunDir


@dataclass(frozen=True)
class Standing:
    """state: running, finished, resumable, not_started or stuck. step: that the run has, or would
    go on from. next: commands to type."""

    state: str
    step: int | None
    text: str
    next: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def stands(run: RunDir, seen: Seen) -> Standing:
    newest = seen.newest
    if seen.is_running:
        return Standing("running", seen.last_logged_step, f"is being trained, after step "
                        f"{seen.last_logged_step}; newest checkpoint: "
                        f"{'none' if newest is None else f'step {newest}'}")
    if seen.needs:
        return Standing("stuck", newest, f"cannot go on without {', '.join(seen.needs)}")
    if seen.result is not None and seen.spoilt and seen.steps:
        return Standing("finished", int(seen.result["progress"]["step"]), "finished; its result is "
                        "damaged, and its checkpoints are not: --resume writes it again",
                        [_resume(run, seen)])
    if seen.result is not None:
        path = shlex.quote(str(run.path))
        return Standing("finished", int(seen.result["progress"]["step"]), "finished; weights of "
                        f"step {seen.result['kept_step']}",
                        [f"lorafit eval {path}", f"lorafit export-adapter {path}"])
    command = [_resume(run, seen)]
    total = next((progress.get("total_steps") for _, progress in sorted(seen.steps.items(),
                                                                        reverse=True)), None)
    if newest is None:
        return Standing("not_started", 0, "has no intact checkpoint: --resume starts over at step "
                        "0", command)
    left = f" of {total}" if total else ""
    return Standing("resumable", newest, f"goes on from step {newest}{left}"
                    + (f"; {', '.join(seen.damaged)} left out" if seen.damaged else ""), command)


def examine_standing(run: RunDir, seen: Seen) -> Iterator[Finding]:
    """One line, and what a run that has to go on needs from elsewhere."""
    section = Section("where it stands")
    now = stands(run, seen)
    yield section.note(now.state.replace("_", " "), now.text)
    if now.state in ("resumable", "not_started") and seen.recipe is not None:
        yield from _inputs(section, seen.recipe)


def _inputs(section: Section, recipe: Any) -> Iterator[Finding]:
    """Base and data, which are not kept in the run."""
    from lorafit.data.first_look import look_at

    for problem in look_at(recipe.data):
        yield section.warning("data", f"{problem.where}: {problem.what}",
                              "--resume needs it as it was; put it back")
    base = recipe.model.base
    if base.startswith(("/", "~", ".")) and not Path(base).expanduser().exists():
        yield section.warning("base", f"{base} is not there", "--resume needs it; put it back")


def _resume(run: RunDir, seen: Seen) -> str:
    command = f"lorafit train {shlex.quote(str(run.recipe))} --resume"
    # The recipe names the directory that the run was made in; it may have been moved since.
    if seen.recipe is not None and Path(seen.recipe.output.dir).resolve() != run.path.resolve():
        command += f" --set output.dir={shlex.quote(str(run.path))}"
    return command

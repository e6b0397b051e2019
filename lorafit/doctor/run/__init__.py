"""`lorafit doctor RUN`: a run directory file by file. Reads alone, and does not need torch unless
there are merged or exported artifacts."""

from collections.abc import Iterator
from pathlib import Path

from lorafit.doctor.finding import Finding, Section
from lorafit.doctor.run.around import examine_artifacts, examine_holder, examine_left_overs
from lorafit.doctor.run.checkpoints import examine_checkpoints
from lorafit.doctor.run.files import examine_beginning, examine_logs, examine_result
from lorafit.doctor.run.seen import Seen
from lorafit.doctor.run.standing import Standing, examine_standing, stands
from lorafit.errors import UserError
from lorafit.run_dir import RunDir

# In this order: what later parts need, earlier ones find out.
_PARTS = (("run", examine_holder), ("run", examine_beginning), ("checkpoints", examine_checkpoints),
          ("logs", examine_logs), ("result", examine_result), ("artifacts", examine_artifacts),
          ("left over", examine_left_overs), ("where it stands", examine_standing))


class RunExamination:
    """The examination of a run directory. UserError when there is no run."""

    def __init__(self, path: Path) -> None:
        self.run = RunDir(path)
        self._seen = Seen()
        _refuse_other(self.run)

    def __iter__(self) -> Iterator[Finding]:
        """Findings in the order in which they are made. Nothing in here raises."""
        for title, examine in _PARTS:
            try:
                yield from examine(self.run, self._seen)
            except Exception as error:
                yield Section(title).failed(title, error, "the rest of this section was not looked "
                                            "at")

    @property
    def standing(self) -> Standing:
        """Where the run stands, once every finding was made."""
        return stands(self.run, self._seen)


def _refuse_other(run: RunDir) -> None:
    path, remedy = run.path, "name a run directory: output.dir of a recipe that was trained"
    if not path.exists():
        raise UserError("no such run", str(path), remedy)
    if not path.is_dir():
        raise UserError("is no directory", str(path), remedy)
    if any(each.exists() for each in (run.recipe, run.checkpoints, run.record, run.metrics)):
        return
    if (path / "state.json").exists() and path.parent.name == "checkpoints":
        raise UserError("is a checkpoint, no run", str(path), f"name {path.parent.parent}")
    if (path / "adapter_config.json").exists() or (path / "config.json").exists():
        raise UserError("is an adapter or a model, no run", str(path), "lorafit verify checks "
                        f"artifacts; {remedy}")
    raise UserError("holds no run", str(path), remedy)

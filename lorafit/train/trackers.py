"""What metrics.jsonl holds, told to experiment trackers as well, where the recipe names some.

Through accelerate's trackers, on the main rank alone. A tracker never ends a run: one that fails is
left out from there on, and said so. Nothing is sent anywhere unless the tracker is set up to.
"""

import netrc
import os
import sys
import uuid
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lorafit.errors import Problem, UserError
from lorafit.recipe.schema import Output, Recipe
from lorafit.run_dir import RunDir, read_json, write_json

# Their own reports home, which nobody asked for; whoever wants them sets these.
_QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "1",
          "GRADIO_ANALYTICS_ENABLED": "False", "WANDB_ERROR_REPORTING": "false"}


def refuse_missing(output: Output) -> None:
    """UserError with every tracker whose package is not installed."""
    problems = [Problem(f"the package {name} is not installed", f"output.trackers: {name}",
                        f"pip install {name}, or take it out of output.trackers")
                for name in output.trackers if not _is_installed(name)]
    if problems:
        raise UserError(problems=problems)


def _is_installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ValueError:  # a module without a specification, or one that was ruled out
        return sys.modules.get(name) is not None


def scalars_of(line: dict[str, Any]) -> dict[str, float]:
    """The numbers of a line of metrics.jsonl by the names that trackers group them under: `train/…`
    of a step, `eval/loss` of an evaluation."""
    if "held_out_loss" in line:
        return {"eval/loss": line["held_out_loss"]}
    told = {f"train/{key}": value for key, value in line.items() if key != "step"
            and isinstance(value, int | float) and not isinstance(value, bool)}
    if line.get("seconds"):
        told["train/tokens_per_second"] = line.get("supervised_tokens", 0) / line["seconds"]
    return told


class Trackers:
    """Trackers at work, by name. `say` receives what goes wrong with one."""

    def __init__(self, at_work: dict[str, Any], say: Callable[[str], None]) -> None:
        self._at_work = at_work
        self._say = say

    def tell(self, line: dict[str, Any]) -> None:
        """A line of metrics.jsonl. One without numbers, such as a warning, is not told."""
        if self._at_work and (told := scalars_of(line)):
            self._each(lambda tracker: tracker.log(told, step=line["step"]))

    def finish(self) -> None:
        self._each(lambda tracker: tracker.finish())
        self._at_work = {}

    def _each(self, do: Callable[[Any], object]) -> None:
        for name, tracker in list(self._at_work.items()):
            try:
                do(tracker)
            except Exception as error:
                del self._at_work[name]
                self._say(_failed(name, error))


def start_trackers(recipe: Recipe, run: RunDir, step: int, say: Callable[[str], None],
                   ) -> Trackers:
    """The trackers that a recipe names, with the recipe as their configuration.

    step: that the run goes on from; what was told of later steps before is taken back where the
    tracker can do that.
    """
    at_work: dict[str, Any] = {}
    if recipe.output.trackers:
        for variable, value in _QUIET.items():
            os.environ.setdefault(variable, value)
    for name in recipe.output.trackers:
        try:
            at_work[name] = _STARTS[name](recipe, run, step)
        except Exception as error:
            say(_failed(name, error))
    return Trackers(at_work, say)


def _failed(name: str, error: Exception) -> str:
    said = str(error).strip().split("\n")[0] or type(error).__name__
    return (f"warning: {name} is left out from here on: {said}; metrics.jsonl of the run holds "
            "everything")


def _tensorboard(recipe: Recipe, run: RunDir, step: int) -> Any:
    """Event files in the run. Their reader drops what they hold of the steps from `purge_step`."""
    from accelerate.tracking import TensorBoardTracker

    tracker = TensorBoardTracker("tensorboard", run.trackers,
                                 purge_step=step + 1 if step else None)
    tracker.start()
    text = run.recipe.read_text(encoding="utf-8")
    # As text: accelerate's add_hparams makes a run of its own beside this one.
    tracker.writer.add_text("recipe", "    " + text.replace("\n", "\n    "), global_step=step)
    return tracker


def _wandb(recipe: Recipe, run: RunDir, step: int) -> Any:
    from accelerate.tracking import WandBTracker

    run.trackers.mkdir(exist_ok=True)
    tracker = WandBTracker(recipe.output.project, name=run.path.name, dir=str(run.trackers),
                           id=_kept_id(run, "wandb", lambda: uuid.uuid4().hex[:12]),
                           resume="allow", mode=_wandb_mode())
    tracker.start()
    tracker.store_init_configuration(recipe.model_dump(mode="json"))
    return tracker


def _wandb_mode() -> str | None:
    """Offline, unless somebody has logged in here or says otherwise: it would ask, and wait."""
    if "WANDB_MODE" in os.environ or "WANDB_API_KEY" in os.environ:
        return None
    try:
        known = netrc.netrc().hosts
    except (OSError, netrc.NetrcParseError):
        known = {}
    return None if any("wandb" in host for host in known) else "offline"


def _mlflow(recipe: Recipe, run: RunDir, step: int) -> Any:
    """In a database of the run, unless MLFLOW_TRACKING_URI names a server."""
    import mlflow
    from accelerate.tracking import MLflowTracker

    if "MLFLOW_TRACKING_URI" not in os.environ:
        run.trackers.mkdir(exist_ok=True)
        mlflow.set_tracking_uri(f"sqlite:///{run.trackers.absolute() / 'mlflow.db'}")
    tracker = MLflowTracker(recipe.output.project, logging_dir=str(run.trackers / "mlflow"),
                            run_id=_kept_ids(run).get("mlflow"), run_name=run.path.name)
    tracker.start()
    if "mlflow" not in _kept_ids(run):
        _kept_id(run, "mlflow", lambda: tracker.tracker.info.run_id)
        tracker.store_init_configuration(_flat(recipe))  # may be set once only
    return tracker


def _trackio(recipe: Recipe, run: RunDir, step: int) -> Any:
    from accelerate.tracking import TrackioTracker

    name = _kept_id(run, "trackio", lambda: f"{run.path.name}-{uuid.uuid4().hex[:6]}")
    tracker = TrackioTracker(recipe.output.project, name=name, resume="allow",
                             config=recipe.model_dump(mode="json"), embed=False)
    tracker.start()
    return tracker


_STARTS: dict[str, Callable[[Recipe, RunDir, int], Any]] = {
    "tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow, "trackio": _trackio}


def _kept_ids(run: RunDir) -> dict[str, str]:
    """What trackers call this run: a run that goes on is the same one to them."""
    path = _ids(run)
    return read_json(path) if path.exists() else {}


def _kept_id(run: RunDir, name: str, make: Callable[[], str]) -> str:
    known = _kept_ids(run)
    if name not in known:
        known[name] = make()
        run.trackers.mkdir(exist_ok=True)
        write_json(_ids(run), known)
    return known[name]


def _ids(run: RunDir) -> Path:
    return run.trackers / "ids.json"


def _flat(recipe: Recipe) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for section, keys in recipe.model_dump(mode="json").items():
        for key, value in keys.items():
            values[f"{section}.{key}"] = value
    return values


NO_TRACKERS = Trackers({}, print)


"""The models that are compared: base, adapter, and whatever is put beside them."""

import gc
import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lorafit.errors import UserError
from lorafit.model.adapters.files import CONFIG, WEIGHTS, check_adapter_files, load_adapter
from lorafit.model.base import load_config, load_for_inference, load_tokenizer, resolve_base
from lorafit.model.trained import AdapterSource, open_adapter
from lorafit.recipe.loading import load_recipe, override
from lorafit.recipe.schema import Model, Recipe
from lorafit.run_dir import RunDir, sha256


@dataclass(frozen=True)
class Contender:
    """A model by the name it has in tables: a base, with an adapter where there is one."""

    name: str
    model: Model
    adapter: Path | None = None

    @property
    def path(self) -> str:
        """What a person would type to name it."""
        return self.model.base if self.adapter is None else str(self.adapter)

    def identity(self) -> str:
        """Changes whenever its weights may have changed: of the base by the sizes and times of its
        files, of the adapter by its content."""
        folder = Path(resolve_base(self.model.base))
        files = [(file.name, file.stat().st_size, file.stat().st_mtime_ns)
                 for file in sorted(folder.glob("*.safetensors"))] if folder.is_dir() else []
        parts = [self.model.model_dump(), files,
                 None if self.adapter is None else sha256(self.adapter / WEIGHTS)]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Subject:
    """What is evaluated: the adapter (or a plain model, without one), and how its rows are read.

    run: where results are kept, None for an adapter or model by itself. label: begins the names of
    its results; empty for the result of a run.
    """

    contenders: tuple[Contender, ...]
    recipe: Recipe
    tokenizer: Any
    run: RunDir | None
    label: str = ""


class Loader:
    """Loads contenders one after the other, and holds one at a time."""

    def __init__(self) -> None:
        self._model: Any = None
        self._plain: Model | None = None  # the base in memory, while nothing was put on it

    def load(self, contender: Contender) -> Any:
        """The contender, ready to answer. The one before must not be used any more."""
        if self._model is None or self._plain != contender.model:
            self.release()
            self._model = load_for_inference(contender.model)
        self._plain = contender.model
        if contender.adapter is not None:
            self._plain = None
            self._model = load_adapter(self._model, contender.adapter)
        return self._model

    def release(self) -> None:
        self._model = self._plain = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def open_subject(path: Path, base: str | None, overrides: list[str], rows: Path | None, *,
                 needs_rows: bool = True) -> Subject:
    """What `path` names: a run, one of its checkpoints, an adapter or a whole model.

    `overrides` are of the recipe's sections evaluation and data; `rows` names a file of rows to
    ask in place of the held-out ones, which only a run has. UserError when something is missing.
    """
    for each in overrides:
        if each.partition(".")[0].strip() not in ("evaluation", "data"):
            raise UserError("the run is what it is: only evaluation.… and data.… can be set here",
                            f"--set {each}", "for example --set evaluation.max_new_tokens=256")
    run, checkpoint = _run_of(path)
    is_other_data = any(each.startswith("data.") for each in overrides)
    label = "-".join(filter(None, [
        checkpoint, rows.stem if rows is not None else "other-data" if is_other_data else ""]))
    if run is None and rows is None and needs_rows:
        if not _is_model(path):
            check_adapter_files(path)
        raise UserError("is no run, so its held-out rows are not known", str(path),
                        "name the rows to ask with --data FILE, or give the run directory")
    if _is_model(path) and run is None:
        model = Model(base=str(path))
        contenders: tuple[Contender, ...] = (Contender("model", model),)
        tokenizer = load_tokenizer(model)
        recipe = _recipe_without_run(model, path)
    else:
        source = open_adapter(path, base)
        if source.run is None and run is not None:  # a checkpoint
            source = _of_run(source, run, base)
        contenders = (Contender("base", source.model),
                      Contender("adapter", source.model, source.directory))
        tokenizer = source.tokenizer()
        recipe = source.recipe or _recipe_without_run(source.model, path)
        if source.run is not None:  # the tokenizer has the template already
            recipe = recipe.model_copy(update={
                "data": recipe.data.model_copy(update={"chat_template": None})})
    recipe = override(recipe, _with_rows(overrides, rows),
                      path if run is None else run.recipe)
    return Subject(contenders, recipe, tokenizer, run, label)


def _with_rows(overrides: list[str], rows: Path | None) -> list[str]:
    """The overrides, and those that make a file the held-out rows: all of it, unless told so."""
    if rows is None:
        return overrides
    return ["data.eval_fraction=0.0", "data.streaming=false", "data.max_eval_rows=null",
            *overrides, f"data.eval={json.dumps(str(rows.absolute()))}"]


def _is_model(path: Path) -> bool:
    return (path / "config.json").exists() and not (path / CONFIG).exists()


def _of_run(source: AdapterSource, run: RunDir, base: str | None) -> AdapterSource:
    """A checkpoint's adapter, with what its run knows."""
    recipe = load_recipe(run.recipe)
    model = recipe.model if base is None else recipe.model.model_copy(update={"base": base})
    return replace(source, run=run, recipe=recipe, model=model)


def beside(subject: Subject, path: Path, name: str | None = None) -> Contender:
    """Another model, adapter or run to compare with. UserError unless it reads the same tokens."""
    name = name or path.resolve().name
    if any(contender.name == name for contender in subject.contenders):
        name = str(path)
    if any(contender.name == name for contender in subject.contenders):
        raise UserError("is named twice", str(path), "leave one of them out")
    if not path.exists():
        raise UserError("no such model, adapter or run", str(path),
                        "give the directory of one; `lorafit merge` writes a merged model")
    if _is_model(path):
        section = subject.contenders[0].model
        contender = Contender(name, Model.model_validate({
            "base": str(path), "dtype": section.dtype, "attention": section.attention,
            "trust_remote_code": section.trust_remote_code}))
    else:
        source = open_adapter(path)
        contender = Contender(name, source.model, source.directory)
    _refuse_other_vocabulary(subject, contender, path)
    return contender


def _refuse_other_vocabulary(subject: Subject, contender: Contender, path: Path) -> None:
    """The rows are tokenised once, for all: a model of other tokens would be asked nonsense."""
    ours, known = subject.contenders[0].model, subject.tokenizer.get_vocab()
    if contender.model.base == ours.base:
        return
    remedy = (f"evaluate it by itself on the rows as a file (lorafit eval {path} --data FILE), and "
              "put the two results side by side with --compare")
    rows = load_config(contender.model).get_text_config().vocab_size
    if rows <= max(known.values()):
        raise UserError(f"has a vocabulary of {rows:,} tokens, and the base one of {len(known):,}",
                        str(path), remedy)
    folder = Path(resolve_base(contender.model.base))
    if (folder / "tokenizer.json").exists() and load_tokenizer(
            contender.model).get_vocab() != known:
        raise UserError("has another tokenizer than the base, so the same tokens mean something "
                        "else to it", str(path), remedy)


def _run_of(path: Path) -> tuple[RunDir | None, str]:
    """The run that a path is, or is a checkpoint of, and how results of it are called."""
    if RunDir(path).recipe.exists():
        return RunDir(path), ""
    absolute = path.absolute()
    if absolute.parent.name == "checkpoints" and RunDir(absolute.parent.parent).recipe.exists():
        return RunDir(absolute.parent.parent), absolute.name
    return None, ""


def _recipe_without_run(model: Model, path: Path) -> Recipe:
    """What a recipe would say of an adapter or a model by itself. Its rows are named elsewhere."""
    return Recipe.model_validate({
        "model": model.model_dump(), "output": {"dir": str(path)},
        "data": {"train": str(path), "max_length_tokens": 1_000_000}})

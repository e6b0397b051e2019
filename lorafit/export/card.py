"""The model card of an artifact: what the hub reads at its top, and what people read below.

Everything in it is taken from the run's files and the proof. Of the data it has counts and hashes,
never rows, and of local files not even the names.
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from lorafit import __version__
from lorafit.data.given import sources_of
from lorafit.export.delta.base import open_base
from lorafit.export.formats import format_named
from lorafit.export.formats.format import Format
from lorafit.export.proof import CARD, MERGED, MERGED_GGUF
from lorafit.model.adapters.files import method_of
from lorafit.model.adapters.lora import VLLM_RANKS
from lorafit.model.base import is_hub_id, resolve_base
from lorafit.model.trained import AdapterSource
from lorafit.recipe.schema import Model, Recipe
from lorafit.run_dir import RunDir, read_json, read_jsonl, write_text
from lorafit.secrets import redacted

_TEMPLATE = Path(__file__).with_name("card.md.jinja")
_CURVE = 8  # points of the loss curve in the table
_LICENCE_KEYS = ("license", "license_name", "license_link")

# How a merged model is loaded, by its form.
_MODELS = {MERGED: """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{name}", dtype="auto", device_map="auto")
tokenizer = AutoTokenizer.from_pretrained("{name}")
```

```sh
vllm serve {name}
```
""", MERGED_GGUF: """\
```sh
llama-cli -m {name}/model.gguf
ollama create {name} -f {name}/Modelfile
```
"""}


@dataclass(frozen=True)
class Trained:
    """What a run tells about itself; empty where an adapter comes without one."""

    steps: int | None
    data: dict[str, Any] | None
    held_out: dict[str, Any] | None
    trainable: int | None
    total: int | None
    curve: list[tuple[int, float]]
    first_eval_loss: float | None
    last_eval_loss: float | None
    kept_step: int | None
    evaluation: dict[str, Any] | None


def write_card(source: AdapterSource, artifact: Path, proof: dict[str, Any],
               command: str = "") -> None:
    """Write README.md into an artifact. command: what starts a program with it."""
    command = command.replace(shlex.quote(str(artifact)), "{folder}")
    write_text(artifact / CARD, redacted(card(source, artifact.name, proof, command)))


def card(source: AdapterSource, name: str, proof: dict[str, Any], command: str = "") -> str:
    """The text of a model card.

    `name` is what the artifact is called where it is loaded; `{folder}` stands for it in `command`.
    """
    model_usage = _MODELS.get(proof["form"])
    merged = model_usage is not None
    base = base_name(source.model)
    licence = base_licence(source.model)
    form = None if merged else format_named(proof["form"])
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True,
                                     lstrip_blocks=True, keep_trailing_newline=True,
                                     autoescape=False)
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    rank = source.config.get("r")
    return template.render(
        front_matter=_front_matter(
            source, form, licence, "gguf" if proof["form"] == MERGED_GGUF else "transformers"),
        name=name,
        merged=merged, base=base,
        base_on_hub=is_hub_id(source.model.base), licence=licence, proof=proof,
        method=method_of(source.config), recipe=source.recipe, data_sets=_data_sets(source.recipe),
        trained=_trained(source.run), version=__version__,
        usage=(model_usage or ("" if form is None else form.usage))
        .replace("{base}", base).replace("{name}", name),
        command=_with_base_name(command.replace("{folder}", name), source.model, base),
        vllm_ranks=VLLM_RANKS, rank=rank if isinstance(rank, int) else None, form=proof["form"],
        for_what="" if form is None else form.for_what,
    )


def _with_base_name(command: str, model: Model, name: str) -> str:
    """A command that names the base as others know it, not by its place on this machine."""
    place = re.escape(shlex.quote(resolve_base(model.base)))
    return re.sub(rf"(?<!\S){place}(?!\S)", lambda match: name, command)


def base_name(model: Model) -> str:
    """A hub id, or the last part of a directory."""
    return model.base if is_hub_id(model.base) or model.base == "tiny" else Path(model.base).name


def base_licence(model: Model) -> dict[str, str]:
    """What the base's own card says of its licence; empty where it is not known here."""
    from huggingface_hub import metadata_load

    weights = open_base(model)
    if weights is None or not (weights.folder / CARD).is_file():
        return {}
    try:
        values = metadata_load(weights.folder / CARD) or {}
    except Exception:  # somebody else's card; whatever is wrong with it, it tells no licence
        return {}
    return {key: str(values[key]) for key in _LICENCE_KEYS if values.get(key)}


def _front_matter(source: AdapterSource, form: Format | None, licence: dict[str, str],
                  model_library: str = "transformers") -> str:
    """YAML as the hub reads it; what is not known is left out. form: None for a merged model, which
    `model_library` loads."""
    from huggingface_hub import ModelCardData

    on_hub = is_hub_id(source.model.base)
    method = method_of(source.config)
    tags = ["lorafit", *(["lora"] if method == "lora" else [method]),
            "merge" if form is None else "adapter"]
    data = ModelCardData(
        base_model=source.model.base if on_hub else None,
        library_name=model_library if form is None else form.library,
        pipeline_tag="text-generation",
        tags=tags, datasets=_data_sets(source.recipe) or None,
        license=licence.get("license"), license_name=licence.get("license_name"),
        license_link=licence.get("license_link"),
        base_model_relation=("merge" if form is None else "adapter") if on_hub else None,
    )
    return str(data.to_yaml()).strip()


def _data_sets(recipe: Recipe | None) -> list[str]:
    """Hub ids among the training sources."""
    if recipe is None:
        return []
    return list(dict.fromkeys(given.name for given in sources_of(recipe.data, "train")
                              if given.location.is_hub))


def _trained(run: RunDir | None) -> Trained | None:
    if run is None or not run.record.exists():
        return None
    record, result = read_json(run.record), read_json(run.result) if run.result.exists() else {}
    lines = read_jsonl(run.metrics)
    losses = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    evals = [line["held_out_loss"] for line in lines if "held_out_loss" in line]
    facts = record.get("adapter") or {}
    return Trained(
        losses[-1][0] if losses else None, record.get("train"), record.get("held_out"),
        facts.get("trainable_parameters"), facts.get("total_parameters"), _some(losses),
        evals[0] if evals else None, evals[-1] if evals else None, result.get("kept_step"),
        read_json(run.evaluation) if run.evaluation.exists() else None)


def _some(losses: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """A few points of a curve, the first and the last among them."""
    if len(losses) <= _CURVE:
        return losses
    at = {round(i * (len(losses) - 1) / (_CURVE - 1)) for i in range(_CURVE)}
    return [losses[i] for i in sorted(at)]

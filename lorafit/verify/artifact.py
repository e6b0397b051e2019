"""What a directory is: a merged model, or an adapter in one of the formats of export/formats."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from lorafit.errors import UserError
from lorafit.export.formats import FORMATS, format_named
from lorafit.export.formats.format import Format
from lorafit.export.gguf.convert import WEIGHTS as MODEL_GGUF
from lorafit.export.gguf.reading import coarsest_type
from lorafit.export.proof import MERGED, PROOF, read_proof
from lorafit.model.adapters.files import CONFIG, WEIGHTS
from lorafit.model.base import TORCH_DTYPES
from lorafit.model.intake import check_adapter_files, check_model_files
from lorafit.model.tensor_headers import check_tensor_file
from lorafit.model.weight_files import weight_shards
from lorafit.run_dir import RunDir, sha256

_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class Artifact:
    """A directory that lorafit or another program wrote.

    form: its format; None for a merged model. stored: the coarsest type of a merged model's
    weights, q8_0 among them. proof: its lorafit_proof.json, where it has one.
    """

    path: Path
    form: Format | None
    stored: str
    proof: dict[str, Any] | None

    @property
    def kind(self) -> str:
        """In words."""
        if self.form is None:
            return f"a merged model in {self.stored}{' as GGUF' if self.is_gguf else ''}"
        return f"an adapter for {self.form.for_what} ({self.form.name})"

    @property
    def is_gguf(self) -> bool:
        """Whether it is a model for llama.cpp."""
        return self.form is None and (self.path / MODEL_GGUF).is_file()

    @property
    def is_quantised(self) -> bool:
        """Whether it is a model whose weights were quantised again, for which no limit is right."""
        try:
            values = json.loads((self.path / "config.json").read_text(encoding="utf-8"))
            return self.form is None and bool(values.get("quantization_config"))
        except (OSError, ValueError, AttributeError):
            return False

    @property
    def base(self) -> str | None:
        """The base that an adapter's own configuration names."""
        try:
            values = json.loads((self.path / CONFIG).read_text(encoding="utf-8"))
            return values.get("base_model_name_or_path") or None
        except (OSError, ValueError, AttributeError):
            return None


def open_artifact(path: Path) -> Artifact:
    """Recognise what a directory holds: by its proof, or by how its files look.

    UserError when it is nothing that can be verified.
    """
    if not path.is_dir():
        raise UserError("no such directory", str(path),
                        "name what lorafit merge or export-adapter wrote")
    if RunDir(path).recipe.exists():
        inside = sorted(str(file.parent) for file in path.glob(f"*/{PROOF}"))
        raise UserError("is a run, not what left it", str(path),
                        f"name {' or '.join(inside)}" if inside else
                        "export it first: lorafit merge, or lorafit export-adapter")
    proof = read_proof(path)
    _look_at(path)
    if proof is not None and proof["form"] in FORMATS:
        return Artifact(path, format_named(proof["form"]), "", proof)
    if (path / MODEL_GGUF).is_file():
        return Artifact(path, None, coarsest_type(path / MODEL_GGUF), proof)
    if not (proof is not None and proof["form"] == MERGED):
        form = next((form for form in map(format_named, FORMATS) if form.owns(path)), None)
        if form is not None:
            return Artifact(path, form, "", proof)
    if (path / "config.json").is_file() and any(path.glob("*.safetensors")):
        return Artifact(path, None, _coarsest(path), proof)
    raise UserError(
        "holds neither a model (config.json and *.safetensors, or model.gguf) nor an adapter in a "
        "known format",
        str(path), f"the formats are {', '.join(FORMATS)}; name the directory that was exported")


def _look_at(path: Path) -> None:
    """UserError when a file in the directory must not reach a library (`lorafit.model.intake`)."""
    if (path / CONFIG).is_file() and (path / WEIGHTS).is_file():
        check_adapter_files(path)
        return
    check_model_files(path, weights=(path / "config.json").is_file()
                      and any(path.glob("*.safetensors")))
    for file in path.glob("*.safetensors"):
        check_tensor_file(file)


def holds_the_trained_tensors(artifact: Artifact, trained: Path) -> bool:
    """Whether an adapter's file of tensors is the run's own to the byte."""
    mine, theirs = artifact.path / WEIGHTS, trained / WEIGHTS
    return mine.is_file() and sha256(mine) == sha256(theirs)


def _coarsest(folder: Path) -> str:
    found = {"float32"}
    for file in set(weight_shards(folder).values()):
        with safe_open(file, "pt") as reader:
            found |= {_NAMES.get(reader.get_slice(name).get_dtype(), "float32")
                      for name in reader.keys()}
    return max(found, key=lambda name: torch.finfo(TORCH_DTYPES[name]).eps)

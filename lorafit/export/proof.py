"""What travels with an artifact so that others can check it: hashes, origins, measured figures.

`lorafit_proof.json` names the SHA-256 of every file of the artifact, of the run's adapter and of
the base's weights, the versions and the machine, and the figures of the comparison with the rows
they were measured on. The model card is not covered, because people edit it.
"""

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from lorafit import __version__
from lorafit.errors import UserError
from lorafit.export.delta.base import open_base
from lorafit.export.delta.held_out import Rows
from lorafit.export.verify import Agreement
from lorafit.model.adapters.files import CONFIG, WEIGHTS
from lorafit.model.base import is_hub_id
from lorafit.model.device import find_device
from lorafit.model.trained import AdapterSource
from lorafit.processor import processor_name
from lorafit.recipe.schema import Model
from lorafit.run_dir import sha256, write_json

PROOF = "lorafit_proof.json"
CARD = "README.md"
# The forms of artifacts that are models, no adapters: for transformers, and for llama.cpp.
MERGED, MERGED_GGUF = "merged model", "merged model as GGUF"
_VERSION = 1
_LIBRARIES = ("torch", "transformers", "peft", "safetensors", "tokenizers")


@dataclass(frozen=True)
class Origin:
    """What an artifact was made by (a verb), and its form: MERGED, MERGED_GGUF or the name of an
    adapter's format."""

    made_by: str
    form: str


def write_proof(source: AdapterSource, artifact: Path, origin: Origin, rows: Rows,
                measured: Mapping[str, Agreement | Mapping[str, Any]],
                tensors: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Write and return the proof of an artifact.

    measured: figures, by what the artifact was compared with. tensors: what was found where the
    files were compared in place of logits (export/tensor_check.py).
    """
    proof = {
        "lorafit_proof": _VERSION,
        "made_by": f"lorafit {origin.made_by}",
        "form": origin.form,
        "date": now(),
        "files": {name: {"sha256": sha256(artifact / name),
                         "size_bytes": (artifact / name).stat().st_size}
                  for name in covered_files(artifact)},
        "not_covered": [CARD, PROOF],
        "trained_adapter": adapter_hashes(source),
        "recipe_sha256": recipe_hash(source),
        "base": base_identity(source.model),
        "rows": rows_identity(rows),
        "measured": {against: figures.as_dict() if isinstance(figures, Agreement)
                     else dict(figures) for against, figures in measured.items()},
        "tensors": None if tensors is None else dict(tensors),
        "versions": versions(),
        "machine": machine(),
    }
    write_json(artifact / PROOF, proof)
    return proof


def add_verification(artifact: Path, proof: Mapping[str, Any], rows: Rows,
                     measured: Mapping[str, Mapping[str, Any]]) -> None:
    """Put what `lorafit verify` measured into a proof, in place of an earlier verification."""
    write_json(artifact / PROOF, dict(proof) | {"verified": {
        "date": now(), "rows": rows_identity(rows),
        "measured": {against: dict(figures) for against, figures in measured.items()},
        "versions": versions(), "machine": machine()}})


def read_proof(artifact: Path) -> dict[str, Any] | None:
    """The proof of an artifact, None where it has none. UserError when it cannot be read."""
    path = artifact / PROOF
    if not path.is_file():
        return None
    try:
        proof = json.loads(path.read_text(encoding="utf-8"))
        is_known = proof["lorafit_proof"] == _VERSION
        for name in ("files", "trained_adapter", "rows", "measured"):
            dict(proof[name])
        all(file["sha256"] for file in proof["files"].values())
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        raise UserError("is damaged: it is no proof as lorafit writes it", str(path),
                        "copy the artifact again, or export it again") from None
    if not is_known:
        raise UserError(f"is a proof of version {proof['lorafit_proof']}, which this lorafit "
                        "does not know", str(path), "use a newer lorafit")
    return dict(proof)


def changes(artifact: Path, proof: Mapping[str, Any]) -> list[str]:
    """Every file that is not as the proof has it, in words: changed, missing, or added since."""
    found = []
    for name, stored in proof["files"].items():
        file = artifact / name
        if not file.is_file():
            found.append(f"{name} is missing")
        elif (size := file.stat().st_size) != stored["size_bytes"]:
            found.append(f"{name} is changed: {size:,} bytes, not {stored['size_bytes']:,}")
        elif sha256(file) != stored["sha256"]:
            found.append(f"{name} is changed: its SHA-256 is another")
    found += [f"{name} is not in the proof: added since"
              for name in covered_files(artifact) if name not in proof["files"]]
    return found


def covered_files(artifact: Path) -> list[str]:
    """Files whose hashes a proof holds, by their paths below the artifact: all but the card, the
    proof itself, and what git and download caches leave in hidden places."""
    names = [file.relative_to(artifact) for file in sorted(artifact.rglob("*")) if file.is_file()]
    return [name.as_posix() for name in names
            if name.as_posix() not in (CARD, PROOF)
            and not any(part.startswith(".") for part in name.parts)]


def adapter_hashes(source: AdapterSource) -> dict[str, str]:
    """SHA-256 of the files of the adapter as it was trained."""
    return {name: sha256(source.directory / name) for name in (CONFIG, WEIGHTS)}


def recipe_hash(source: AdapterSource) -> str | None:
    """SHA-256 of the run's recipe; None for an adapter without a run."""
    return None if source.run is None else sha256(source.run.recipe)


def base_identity(model: Model) -> dict[str, Any]:
    """Which base: its name (of a directory the last part alone, as paths are nobody's business),
    and the SHA-256 of its configuration and of each weight file, which the hub shows as well.

    Hashing reads the weights once, which loading them does too. config_sha256 and weights are None
    where the files are not on this machine.
    """
    is_elsewhere = is_hub_id(model.base)
    name = model.base if is_elsewhere or model.base == "tiny" else Path(model.base).name
    identity: dict[str, Any] = {"name": name, "on_hub": is_elsewhere,
                                "revision": model.revision, "quantization": model.quantization,
                                "config_sha256": None, "weights": None}
    weights = open_base(model)
    if weights is None:
        return identity
    files = sorted(set(weights.shards.values()))
    if not all(file.is_file() for file in files):
        return identity
    return identity | {
        "config_sha256": sha256(weights.folder / "config.json"),
        "weights": {file.name: sha256(file) for file in files},
    }


def other_base(stored: Mapping[str, Any], found: Mapping[str, Any]) -> str | None:
    """How a base differs from the proof's, in words; empty where it is the same, None where that
    cannot be told because one of them was not at hand."""
    if stored["weights"] is None or found["weights"] is None:
        return None
    if stored["config_sha256"] != found["config_sha256"]:
        return "config.json is another"
    names = sorted(name for name in {*stored["weights"], *found["weights"]}
                   if stored["weights"].get(name) != found["weights"].get(name))
    return f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} different" if names else ""


def rows_identity(rows: Rows) -> dict[str, Any]:
    """What rows figures were measured on: their number and the SHA-256 of their token ids."""
    digest = hashlib.sha256()
    for ids in rows.ids:
        digest.update(np.ascontiguousarray([len(ids), *ids], dtype="<i8").tobytes())
    return {"what": rows.what, "rows": len(rows.ids),
            "tokens": sum(len(ids) for ids in rows.ids), "sha256": digest.hexdigest()}


def now() -> str:
    """The date and time in UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def versions() -> dict[str, str]:
    found = {"lorafit": __version__, "python": platform.python_version()}
    return found | {name: metadata.version(name) for name in _LIBRARIES}


def machine() -> dict[str, Any]:
    """What kind of machine this is; not which one."""
    device, facts = find_device()
    return {"system": f"{platform.system()} {platform.machine()}", "processor": processor_name(),
            "cpus": os.cpu_count(), "device": str(device.type) if device.type == "cpu"
            else facts.name}

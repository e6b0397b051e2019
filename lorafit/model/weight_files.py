"""The files of a model directory that hold its weights."""

import json
from pathlib import Path

from safetensors import safe_open

from lorafit.errors import UserError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


def weight_shards(folder: Path) -> dict[str, Path]:
    """The file of every tensor of a model directory, in the order of the files."""
    if (folder / INDEX).exists():
        weight_map = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        return {name: folder / file
                for name, file in sorted(weight_map.items(), key=lambda item: item[1])}
    files = [folder / SINGLE] if (folder / SINGLE).exists() else sorted(
        folder.glob("*.safetensors"))
    shards = {}
    for file in files:
        with safe_open(file, "pt") as reader:
            shards.update(dict.fromkeys(reader.keys(), file))
    if not shards:
        raise UserError("holds no weights (*.safetensors)", str(folder),
                        "give a complete base with --base")
    return shards

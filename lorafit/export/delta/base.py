"""Single weights of the base, read from its files one at a time. Never downloads anything."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from lorafit.errors import UserError
from lorafit.model.local_files import is_hub_id, local_files
from lorafit.model.tensor_headers import check_tensor_file
from lorafit.model.weight_files import weight_shards
from lorafit.recipe.schema import Model


@dataclass(frozen=True)
class BaseWeights:
    """The file of each tensor of a model directory."""

    folder: Path
    shards: dict[str, Path]

    def weight(self, name: str) -> torch.Tensor | None:
        """A weight by its name in the model, in float32.

        None where the files have no such tensor, have it in a quantised form, or lack the file.
        """
        stored = self._stored(name)
        if stored is None or not self.shards[stored].exists():
            return None
        with safe_open(self.shards[stored], "pt") as reader:
            tensor: torch.Tensor = reader.get_tensor(stored)
        return tensor.float() if tensor.is_floating_point() and tensor.itemsize > 1 else None

    def _stored(self, name: str) -> str | None:
        """A weight's name in the files: some are saved within a larger model, or shared."""
        if name in self.shards:
            return name
        if name.endswith("lm_head.weight"):
            return next((key for key in self.shards if key.endswith("embed_tokens.weight")), None)
        tail = name.removeprefix("model.")
        found = [key for key in self.shards if key.endswith(f".{tail}")]
        return found[0] if len(found) == 1 else None


def open_base(model: Model) -> BaseWeights | None:
    """The base's weights where they are on this machine, None otherwise."""
    try:
        # A directory may lack files of layers that nobody asks for.
        folder, _ = local_files(model, weights=is_hub_id(model.base), download=False)
        shards = weight_shards(folder)
        for file in {file for file in shards.values() if file.exists()}:
            check_tensor_file(file)
        return BaseWeights(folder, shards)
    except UserError:
        return None

"""Which base a run was trained on, told by its files without reading all of them."""

import hashlib
from pathlib import Path

from lorafit.model.base import resolve_base

_SAMPLES = 64  # of each file of weights
_SAMPLE_BYTES = 1 << 14


def base_digest(base: str) -> str | None:
    """A digest of a local base: its configuration whole, of each file of weights its size, its
    header and 64 pieces of 16 KiB. None for one on the hub, whose commit says as much.

    Weights that were trained further differ everywhere, so a sample finds them; a file in which a
    few bytes were changed by hand may pass.
    """
    folder = Path(resolve_base(base))
    if not folder.is_dir():
        return None
    digest = hashlib.sha256()
    for file in sorted([folder / "config.json", *folder.glob("*.safetensors")]):
        if not file.is_file():
            continue
        size = file.stat().st_size
        digest.update(f"{file.name} {size}\n".encode())
        with file.open("rb") as content:
            for i in range(_SAMPLES):
                content.seek(max(0, size - _SAMPLE_BYTES) * i // (_SAMPLES - 1))
                digest.update(content.read(_SAMPLE_BYTES))
    return digest.hexdigest()

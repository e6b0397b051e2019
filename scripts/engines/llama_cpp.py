"""llama.cpp, as the wheel of xllamacpp brings it."""

from pathlib import Path

from environment import Environment

from engines.engine import Engine


def _as_gguf(model: Path, folder: Path) -> Path:
    """A model as GGUF in float32; needs lorafit's extra gguf where this runs."""
    from lorafit.export.gguf.convert import convert

    folder.mkdir(parents=True, exist_ok=True)
    return convert(model, folder, "f32").file


ENGINE = Engine(
    name="llama.cpp", title="llama.cpp", package="xllamacpp", driver="llama_cpp.py",
    environment=Environment("engine-llama-cpp", ("xllamacpp==2026.10.11549",)),
    format="gguf", merged="all", model=_as_gguf,
)

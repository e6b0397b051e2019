"""llama.cpp, as the wheel of xllamacpp brings it."""

import os
import subprocess
import sys
from pathlib import Path

from environment import Environment

from engines.engine import Engine

_CONVERT = ("import sys; from pathlib import Path; "
            "from lorafit.export.gguf.convert import convert; "
            "convert(Path(sys.argv[1]), Path(sys.argv[2]), 'f32')")


def _as_gguf(base: Path, folder: Path) -> Path:
    """The base as GGUF; needs lorafit's extra gguf where this runs."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, "-c", _CONVERT, str(base), str(folder)], check=True,
                   env=os.environ)
    return folder / "model.gguf"


ENGINE = Engine(
    name="llama.cpp", title="llama.cpp", package="xllamacpp", driver="llama_cpp.py",
    environment=Environment("engine-llama-cpp", ("xllamacpp==2026.10.11549",)),
    format="gguf", merged="none", base=_as_gguf,
)

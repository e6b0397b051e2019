"""What `lorafit merge --format gguf` does."""

from pathlib import Path

from lorafit.cli import show
from lorafit.cli.before import settle_hub_for
from lorafit.errors import UserError
from lorafit.run_dir import refuse_target


def merge(trained: Path, output: Path | None, base: str | None, dtype: str | None, form: str,
          kind: str | None, onto: str = "full") -> None:
    if form not in ("safetensors", "gguf"):
        raise UserError(f"unknown format {form!r}", "--format", "use safetensors or gguf")
    if form == "safetensors":
        raise UserError("--gguf-type is for --format gguf", "--gguf-type",
                        "add --format gguf, or use --dtype")
    if dtype is not None:
        raise UserError("--dtype is for --format safetensors", "--dtype", "use --gguf-type")
    if onto not in ("full", "dequantised"):
        raise UserError(f"a GGUF is not made of a model merged onto {onto!r}", "--onto",
                        "use full or dequantised, and --gguf-type q8_0 for a small file")
    target = output or trained / "merged-gguf"
    refuse_target(target, "choose another directory with --output")
    from lorafit.export.gguf.library import gguf_library, refuse_unknown_type

    refuse_unknown_type(kind)
    gguf_library()
    settle_hub_for(trained, base)
    from lorafit.cli.show_gguf import merged_to_gguf
    from lorafit.export.certify import certify_gguf
    from lorafit.export.gguf.merged import merge_to_gguf
    from lorafit.model.trained import open_adapter

    source = open_adapter(trained, base)
    result = merge_to_gguf(source, target, kind, show.progress, onto=onto)
    certify_gguf(source, result)
    merged_to_gguf(result)

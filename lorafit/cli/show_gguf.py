"""What is said of a model that was written as GGUF."""

from typing import Any

from lorafit.cli.show import _agreement, console


def merged_to_gguf(result: Any) -> None:
    converted = result.converted
    console.print(f"merged    {result.directory} ({converted.file.name}, {converted.kind}, "
                  f"{converted.tensors} tensors, {result.size_bytes / 1e6:,.1f} MB)", markup=False)
    if result.merged.agreement is None:
        console.print("checked   merged against base + adapter, tensor by tensor")
    else:
        console.print("checked   merged against base + adapter: "
                      f"{_agreement(result.merged.agreement)}")
    console.print(f"          the GGUF against the merged model: {_agreement(result.agreement)}")
    if converted.fallbacks:
        console.print(f"form      {converted.fallbacks} tensors are in f16: their rows do not "
                      "divide into blocks of 32")
    for remark in converted.remarks:
        console.print(f"note      {remark}", markup=False)

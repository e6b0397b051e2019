"""peft's own format: the trained tensors to the bit."""

import shutil
from pathlib import Path
from typing import Any

import torch

from lorafit.errors import Problem, UserError
from lorafit.export.formats.format import Format, Written
from lorafit.export.full_base import FOR_FULL_BASE, remark, write_converted
from lorafit.export.own import write_as_lora
from lorafit.export.verify import Agreement, compare, using
from lorafit.model.adapters.files import (
    CONFIG,
    WEIGHTS,
    check_adapter_files,
    load_adapter,
    method_of,
    only_on,
)
from lorafit.model.adapters.own import METHOD_KEY
from lorafit.model.adapters.quiet import no_advice
from lorafit.model.base import load_base
from lorafit.model.trained import AdapterSource
from lorafit.run_dir import write_text

_REMARKS = {
    "paca": "converted: a LoRA adapter at scale 1 whose A picks the trained columns",
    "bottleneck": "lorafit's own form, which only lorafit loads",
}


def _refuse(source: AdapterSource) -> list[Problem]:
    if method_of(source.config) == "full":
        return [Problem("full fine-tuning leaves a model, not an adapter", str(source.directory),
                        "write the model: lorafit merge")]
    return []


def _write(source: AdapterSource, folder: Path) -> Written:
    """A copy; of lorafit's own methods, paca is converted to LoRA and bottleneck stays its own."""
    method = method_of(source.config)
    if method == "paca":
        write_as_lora(source, folder)
    else:
        for name in (CONFIG, WEIGHTS):
            shutil.copyfile(source.directory / name, folder / name)
    stored = only_on(folder)
    if stored:
        (folder / FOR_FULL_BASE).mkdir()
        write_converted(source, folder / FOR_FULL_BASE)
        write_text(folder / "VALID_ON.txt", remark(stored) + "\n")
    return Written(method == "paca", _REMARKS.get(method, remark(stored)))


def _check(source: AdapterSource, folder: Path) -> tuple[Agreement, str]:
    """With plain peft, on the base as it was trained on.

    A converted one in float32, so that what is left is the order of sums.
    """
    rows = source.rows()
    is_own, was_own = (METHOD_KEY in config
                       for config in (check_adapter_files(folder), source.config))
    dtype = source.model.dtype
    if dtype == "auto" or is_own != was_own:
        dtype = "float32"

    def base() -> object:
        return load_base(source.model, dtype, "eager", torch.device("cpu"))

    agreement = compare(using(lambda: load_adapter(base(), source.directory), rows),
                        using(lambda: _load(base(), folder), rows))
    return agreement, "lorafit" if is_own else "plain peft"


def _owns(folder: Path) -> bool:
    return (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()


def _load(base: Any, folder: Path) -> Any:
    """With plain peft; with lorafit what only lorafit loads. UserError when it does not fit."""
    if METHOD_KEY in check_adapter_files(folder):
        return load_adapter(base, folder)
    from peft import PeftModel

    try:
        with no_advice():
            return PeftModel.from_pretrained(base, str(folder)).eval()
    except Exception as error:
        message = (str(error).strip() or type(error).__name__).splitlines()
        raise UserError(f"plain peft does not load it: {message[min(1, len(message) - 1)]}",
                        str(folder), "use the base that it was trained on") from None


_USAGE = """\
```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{base}", dtype="auto", device_map="auto")
model = PeftModel.from_pretrained(model, "{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")
```
"""

PEFT = Format("peft", "peft and transformers", _refuse, _write, _check,
              owns=_owns, load=_load, usage=_USAGE)

"""The commented recipe that `lorafit init` writes."""

import re
from textwrap import dedent

import yaml

from lorafit.recipe.reading import parse_scalar


def starter_recipe(model: str, data: str, evaluation: str | None, columns: dict[str, str],
                   quantization: str, output: str) -> str:
    """YAML of a starter recipe. `columns` maps roles to the columns of an unusual file."""
    mapping = ""
    if columns:
        pairs = ", ".join(f"{role}: {_quoted(name)}" for role, name in columns.items())
        mapping = f"  columns: {{{pairs}}}   # role of each column in your file\n"
    held_out = (
        f"  eval: {_quoted(evaluation)}" if evaluation
        else "  eval_fraction: 0.05         # hold out 5 % to see whether it generalises"
    )
    head = dedent(f"""\
        # Every key is explained by `lorafit schema --markdown`.
        # What it will need:  lorafit plan THIS_FILE
        # Check it:           lorafit check THIS_FILE
        # Try it in seconds:  lorafit train THIS_FILE --smoke

        model:
          base: {_quoted(model)}
          quantization: {quantization}          # nf4 quarters the base's memory, but saves no time

        adapter:
          rank: 16                    # more rank holds more; parameters grow in proportion
          alpha: 32                   # the update is scaled by alpha / rank
          target_modules: all-linear  # attention alone learns less at equal size
          dropout: 0.0

        data:
          train: {_quoted(data)}
        """)
    tail = dedent(f"""\

        training:
          epochs: 1
          batch_size: 16              # sequences per step over all devices; small is safe for LoRA
          learning_rate: auto         # about 10 times full fine-tuning's
          schedule: constant

        output:
          dir: {_quoted(output)}
        """)
    length = ("  max_length_tokens: 2048     # longest row\n"
              "  on_long: error              # or drop, or truncate")
    return f"{head}{mapping}{held_out}\n{length}\n{tail}"


def _quoted(value: str) -> str:
    """A YAML scalar that reads back as this text, on one line, inside braces too."""
    if re.fullmatch(r"[A-Za-z/.][A-Za-z0-9/._-]*", value) and parse_scalar(value) == value:
        return value
    dumped: str = yaml.safe_dump(value, default_style='"', allow_unicode=True, width=10_000)
    return dumped.removesuffix("\n")

"""Chat templates by name: the tokenizer's own, the ones that come with lorafit, and files."""

from datetime import date
from importlib import resources
from pathlib import Path
from typing import Any

from lorafit.data.chat.program import Program
from lorafit.errors import UserError

_PLACE = "data.chat_template"


def shipped() -> list[str]:
    """Names of the templates that come with lorafit."""
    files = resources.files(__package__).iterdir()
    return sorted(file.name.removesuffix(".jinja") for file in files
                  if file.name.endswith(".jinja"))


def resolve_template(value: str | None, tokenizer: Any) -> str | None:
    """The template that `data.chat_template` means, as text; None when there is none at all.

    In this order: the tokenizer's own where `value` is None, the template itself, the name of one
    of the tokenizer's, the name of one that comes with lorafit, the path of a file. Without a
    tokenizer (None) it has no templates. UserError that lists the names when nothing fits.
    """
    own = None if tokenizer is None else tokenizer.chat_template
    named: dict[str, str] = own if isinstance(own, dict) else {}
    if value is None:
        if named and "default" not in named:
            raise UserError("the tokenizer has several chat templates and none is the default",
                            _PLACE, f"name one of them: {', '.join(sorted(named))}")
        return named["default"] if named else own
    if "{{" in value or "{%" in value:
        return value
    if value in named:
        return named[value]
    if value in shipped():
        return (resources.files(__package__) / f"{value}.jinja").read_text(encoding="utf-8")
    try:
        template = Path(value).read_text(encoding="utf-8")
    except FileNotFoundError:
        names = [*sorted(named), *shipped()]
        raise UserError(f"no chat template and no file is called {value!r}", _PLACE,
                        f"give the path of a Jinja file, or one of {', '.join(names)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the template cannot be read: {error}", _PLACE,
                        "give the path of a Jinja file") from None
    if not template.strip():
        raise UserError(f"the template is empty: {value}", _PLACE,
                        "give another file, or leave the key out for the tokenizer's own")
    return template


def check_template(template: str | None) -> None:
    """UserError when the template that the recipe names is no template at all."""
    why = None if template is None else Program(template, date.today()).broken()
    if why is not None:
        raise UserError(f"the template cannot be compiled: {why}", _PLACE, "mend the template")

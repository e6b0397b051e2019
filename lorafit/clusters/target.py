"""What a target offers, and how its text is made."""

import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from lorafit import __version__
from lorafit.clusters.job import OPTIONS, Job, check
from lorafit.errors import Problem, UserError


@dataclass(frozen=True)
class Target:
    """name: of the option. takes: fields of a Job that it has a use for, of those in OPTIONS.
    text: the file; it may raise UserError. is_script: started by a shell, not read by a tool.
    next_step: what the user types then, with {file} in place of its name.
    """

    name: str
    takes: frozenset[str]
    text: Callable[[Job], str]
    is_script: bool
    next_step: str

    def write(self, job: Job) -> str:
        """The file for a job. UserError for what it cannot have."""
        if unused := [name for name in OPTIONS if getattr(job, name) and name not in self.takes]:
            raise UserError(problems=[
                Problem(f"means nothing to --{self.name}", OPTIONS[name], "leave it out")
                for name in unused])
        check(job)
        return self.text(job)


def render(template: str, job: Job, **values: Any) -> str:
    """A template's text. Filters: sh quotes a word for a shell, words a list of them, yaml a value;
    comment makes one line of a text."""
    made = _environment().from_string(template).render(
        job=job, version=__version__, **values)
    return made.rstrip("\n") + "\n"


@cache
def _environment() -> Any:
    import jinja2

    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True, autoescape=False,
        # `{%` and `{#` mean something to a shell; these do not.
        block_start_string="<%", block_end_string="%>", comment_start_string="<#",
        comment_end_string="#>", variable_start_string="<<", variable_end_string=">>")
    environment.filters.update(sh=shlex.quote, words=_words, yaml=_yaml, comment=_comment)
    return environment


class Expression(str):
    """A word of a command that the shell is to look into: of a template, never of a user."""


def _words(words: Sequence[str]) -> str:
    return " ".join(word if isinstance(word, Expression) else shlex.quote(word) for word in words)


def _yaml(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)  # YAML reads JSON


def _comment(text: str) -> str:
    return "".join(each if each.isprintable() else "?" for each in " ".join(text.split()))

"""Recipes, chat templates, rows and names."""

import gzip
import json
from collections.abc import Callable

from reliability.hostile.artifact import RECIPE, ROWS, Artifact, Place, pickled

_CHECK = ["check", "r.yaml"]


def _recipe(text: Callable[[Place], str]) -> Callable[[Place], list[str]]:
    def make(place: Place) -> list[str]:
        (place.work / "r.yaml").write_text(text(place))
        return _CHECK

    return make


def _instead(old: str, new: str) -> Callable[[Place], list[str]]:
    return _recipe(lambda place: RECIPE.replace("{base}", "tiny").replace(
        old, new.replace("{canary}", str(place.canary))))


def _gigabyte(place: Place) -> list[str]:
    with (place.work / "r.yaml").open("r+b") as file:
        file.truncate(1 << 30)
    return _CHECK


def _template(source: str) -> Callable[[Place], list[str]]:
    def make(place: Place) -> list[str]:
        place.recipe("tiny")
        place.evil.mkdir(exist_ok=True)
        (place.evil / "t.jinja").write_text(source.replace("{canary}", str(place.canary)))
        return [*_CHECK, "--set", f"data.chat_template={place.evil / 't.jinja'}"]

    return make


def _rows(name: str, content: Callable[[Place], bytes]) -> Callable[[Place], list[str]]:
    def make(place: Place) -> list[str]:
        place.recipe("tiny")
        place.evil.mkdir(exist_ok=True)
        (place.evil / name).write_bytes(content(place))
        return [*_CHECK, "--set", f"data.train={place.evil / name}"]

    return make


def _script(place: Place) -> list[str]:
    place.recipe("tiny")
    folder = place.evil / "evil"
    folder.mkdir(parents=True)
    (folder / "evil.py").write_text(place.code())
    return [*_CHECK, "--set", f"data.train={{path: {folder}, split: train}}"]


_BOMB = "".join(f"b{n}: &b{n} [{', '.join([f'*b{n - 1}'] * 9)}]\n" for n in range(1, 10))
_ESCAPES = {
    "Python's classes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "classes by a format": "{{ '{0.__class__.__mro__}'.format('') }}",
    "classes by the filter attr": "{{ ('' | attr('__class__')) | attr('__mro__') }}",
    "classes by the filter map": "{{ [''] | map(attribute='__class__') | list }}",
    "the globals of a helper":
        "{{ cycler.__init__.__globals__.os.system('touch {canary}') }}",
    "the globals of a namespace":
        "{{ namespace.__init__.__globals__['__builtins__']['open']('{canary}', 'w') }}",
    "a file that is included": "{% include '/etc/passwd' %}",
    "a template that is extended": "{% extends '/etc/passwd' %}",
    "a module that is imported": "{% import 'os' as os %}{{ os.system('touch {canary}') }}",
}
_BOMBS = {
    "a tower of powers": "{{ 10 ** 10 ** 10 }}", "a text of a gigabyte": "{{ 'a' * 10 ** 9 }}",
    "a width of a gigabyte": "{{ 'a' | center(1000000000) }}",
    "loops in loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}"
                      "{% endfor %}",
    "a macro that calls itself": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "a range without end": "{% for a in range(10 ** 12) %}{{ a }}{% endfor %}",
}

ARTIFACTS = (
    Artifact("a YAML tag that calls a function", "yaml", _instead(
        "base: tiny", "base: !!python/object/apply:os.system ['touch {canary}']")),
    Artifact("a YAML tag that makes an object", "yaml", _instead(
        "rank: 2", "rank: !!python/object/new:subprocess.Popen [[touch, '{canary}']]")),
    Artifact("a YAML tag on the document", "yaml", _recipe(
        lambda place: f"!!python/object/apply:os.system ['touch {place.canary}']\n")),
    Artifact("aliases that multiply", "yaml", _recipe(lambda _: "b0: &b0 [x]\n" + _BOMB)),
    Artifact("an alias of itself", "yaml", _recipe(lambda _: "model: &m\n  base: *m\n")),
    Artifact("brackets 20,000 deep", "yaml", _recipe(lambda _: "model: " + "[" * 20_000)),
    Artifact("a recipe of a gigabyte", "yaml", _gigabyte),
    Artifact("merge keys", "yaml", _instead("rank: 2", "<<: {rank: 2}")),
    *(Artifact(f"a template: {name}", "escape", _template(source))
      for name, source in _ESCAPES.items()),
    *(Artifact(f"a template: {name}", "template bomb", _template(source))
      for name, source in _BOMBS.items()),
    Artifact("a row nested 100,000 deep", "rows", _rows(
        "rows.jsonl", lambda _: b'{"messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}\n")),
    Artifact("a number of a million digits", "rows", _rows(
        "rows.jsonl", lambda _: b'{"text": ' + b"9" * 1_000_000 + b"}\n")),
    Artifact("rows in a pickle", "rows", _rows("rows.pkl", lambda place: pickled(place.canary))),
    Artifact("a pickle that is called Parquet", "rows",
             _rows("rows.parquet", lambda place: pickled(place.canary))),
    Artifact("a pickle that is called Arrow", "rows",
             _rows("rows.arrow", lambda place: pickled(place.canary))),
    Artifact("tools nested 100,000 deep in a text", "rows",
             _rows("rows.jsonl", lambda _: json.dumps({**json.loads(ROWS.splitlines()[0]),
                                                       "tools": "[" * 100_000}).encode())),
    Artifact("a compressed row that is cut short", "rows", _rows(
        "rows.jsonl.gz", lambda _: gzip.compress(b'{"text": "' + b"a" * 1_000_000)[:-20])),
    Artifact("a data set with a loading script", "rows", _script),
    Artifact("an adapter's name that climbs out", "name",
             lambda place: ["serve", f"../../evil={place.trained}", "--dry-run"]),
    Artifact("an adapter's name that is two dots", "name",
             lambda place: ["serve", f"..={place.trained}", "--dry-run"]),
    Artifact("an adapter's name that is an address", "name",
             lambda place: ["serve", f"http://x/y={place.trained}", "--dry-run"]),
    Artifact("an adapter's name of 10,000 letters", "name",
             lambda place: ["serve", f"{'a' * 10_000}={place.trained}", "--dry-run"]),
    Artifact("an evaluation's name that climbs out", "name",
             lambda place: ["eval", str(place.trained), "--name", "../../evil"]),
)

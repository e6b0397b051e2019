"""YAML text to plain values, with the line of every key.

PyYAML parses; the values are built here from its node tree because three things matter to a
person that its loader does not give: line numbers, an error for a key written twice, and `1e-5`
read as the number it is (YAML 1.1 makes it a string).
"""

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from lorafit.errors import Problem, UserError

KeyPath = tuple[str | int, ...]

MAX_NODES = 20_000  # a recipe has under 200; aliases that multiply are an attack

_INT = re.compile(r"[-+]?[0-9](_?[0-9])*")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9](_?[0-9])*(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_BOOLS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


@dataclass
class Document:
    """Values of a YAML text, the line of each key path, and what was wrong with it."""

    values: Any
    lines: dict[KeyPath, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def line_of(self, path: KeyPath) -> int | None:
        """Line of the longest known prefix of `path`."""
        for end in range(len(path), -1, -1):
            if path[:end] in self.lines:
                return self.lines[path[:end]]
        return None


def read_yaml(text: str, name: str) -> Document:
    """Parse `text`; `name` stands for the file in messages. UserError when it is not YAML."""
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise UserError(
            f"character {chr(error.character)!r} is not allowed in YAML", f"{name}:{line}",
            "save the file as plain UTF-8 text",
        ) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}" if mark else name
        remedy = "check the indentation, the colons and the quotes around this line"
        if "\t" in (error.problem or "") or "'\\t'" in (error.problem or ""):
            remedy = "indent with spaces; YAML allows no tabs"
        what = f"not valid YAML: {error.problem or error.context}"
        raise UserError(what, where, remedy) from None
    except (ValueError, OverflowError) as error:  # PyYAML converts some numbers unchecked
        raise UserError(f"not valid YAML: {error}", name,
                        "check escapes such as \\U0001F600 and the %YAML line") from None
    except RecursionError:
        raise UserError("nested too deeply", name, "a recipe has two or three levels") from None
    document = Document(None)
    if node is not None:
        try:
            _Builder(document, name).build_root(node)
        except RecursionError:
            raise UserError("nested too deeply", name, "a recipe has a few levels") from None
    return document


def parse_scalar(text: str) -> Any:
    """The value that an unquoted YAML scalar means."""
    if text in ("", "~") or text.lower() == "null":
        return None
    if text.lower() in _BOOLS:
        return _BOOLS[text.lower()]
    if _INT.fullmatch(text):
        digits = text.replace("_", "")
        return int(digits) if len(digits) <= 20 else float(digits)
    if _FLOAT.fullmatch(text):
        return float(text.replace("_", ""))
    if re.fullmatch(r"[-+]?\.(inf|Inf|INF)", text):
        return float(text.replace(".", ""))
    if text in (".nan", ".NaN", ".NAN"):
        return float("nan")
    return text


class _Loader(yaml.SafeLoader):
    """Composes nodes that know whether a tag was written (`!!str 5`) or only implied."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        tag = getattr(event, "tag", None)
        node: Any = super().compose_node(parent, index)
        if tag is not None:
            node.written_tag = tag
        return node


class _Builder:
    def __init__(self, document: Document, name: str) -> None:
        self.document = document
        self.name = name
        self.nodes = 0
        self.open: set[int] = set()

    def build_root(self, node: yaml.Node) -> None:
        self.document.values = self.build(node, ())

    def build(self, node: yaml.Node, path: KeyPath) -> Any:
        self.nodes += 1
        if self.nodes > MAX_NODES or id(node) in self.open:
            raise UserError(
                "aliases that refer to themselves or multiply are refused",
                self.where(node), "write the values out",
            )
        if self.refuses_tag(node):
            return None
        self.document.lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, yaml.ScalarNode):
            if any("\ud800" <= character <= "\udfff" for character in node.value):
                self.problem(node, "half of a character, such as an escape \\ud83d alone",
                             "write the character itself, or \\U and its eight digits")
                return None
            return parse_scalar(node.value) if node.style is None else node.value
        self.open.add(id(node))
        try:
            if isinstance(node, yaml.SequenceNode):
                return [self.build(child, (*path, i)) for i, child in enumerate(node.value)]
            assert isinstance(node, yaml.MappingNode)
            return self.build_mapping(node, path)
        finally:
            self.open.discard(id(node))

    def build_mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        values: dict[str, Any] = {}
        first_line: dict[str, int] = {}
        for key_node, value_node in node.value:
            if self.refuses_tag(key_node):
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                self.problem(key_node, "a key must be a plain word", "write `key: value`")
                continue
            key = key_node.value
            line = key_node.start_mark.line + 1
            if key_node.tag == "tag:yaml.org,2002:merge":
                self.problem(key_node, "merge keys (<<) are refused", "write the values out")
                continue
            if key in values:
                dotted = ".".join(map(str, (*path, key)))
                self.problem(key_node, f"{dotted} is written twice (first in line "
                             f"{first_line[key]})", "keep one of them")
                continue
            first_line[key] = line
            self.document.lines[(*path, key)] = line
            values[key] = self.build(value_node, (*path, key))
        return values

    def refuses_tag(self, node: yaml.Node) -> bool:
        tag = getattr(node, "written_tag", None)
        if tag is not None:
            self.problem(node, f"the tag {tag} is refused",
                         "write a plain value, and text that looks like a number in quotes")
        return tag is not None

    def where(self, node: yaml.Node) -> str:
        return f"{self.name}:{node.start_mark.line + 1}"

    def problem(self, node: yaml.Node, what: str, remedy: str) -> None:
        self.document.problems.append(Problem(what, self.where(node), remedy))

"""What is added to a chat template before it is compiled: marks, and questions to the budget.

The added nodes are filters of the environment: `mark` at each turn of a loop, at its end, around
what stands in `{% generation %}`, and in macros; `timed` around what selects the items of a loop;
`concatenated` for `~` and `cut` for slices, which jinja would otherwise do without asking the
sandbox. A filter is called at once, where a method would first go through the sandbox's `call`.
"""

import secrets

from jinja2 import ext, nodes
from jinja2.parser import Parser
from jinja2.visitor import NodeTransformer

PREFIX = f"{secrets.token_hex(8)} "
"""Begins the names of the added filters, so that no template can name one."""


class GenerationTag(ext.Extension):
    """`{% generation %}`: what stands in it is what the model generates."""

    tags = {"generation"}  # noqa: RUF012 (jinja's own declaration)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope([_mark("generation", line), *body, _mark("end", line)]).set_lineno(line)


class Instrument(NodeTransformer):
    """Adds marks to loops, and sends what the sandbox does not see through the budget."""

    def __init__(self) -> None:
        self.loops = 0

    def visit_For(self, node: nodes.For) -> list[nodes.Node]:
        self.loops += 1
        loop = self.loops
        self.generic_visit(node)
        item = [nodes.Name(node.target.name, "load")] if isinstance(node.target, nodes.Name) else []
        if node.test is not None:
            node.test = _filter("timed", node.lineno, node.test)
        node.body.insert(0, _mark("turn", node.lineno, nodes.Const(loop), *item))
        return [node, _mark("left", node.lineno, nodes.Const(loop))]

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, _mark("macro", node.lineno))  # counts, as recursion takes time
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filter("concatenated", node.lineno, *node.nodes)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        if not isinstance(node.arg, nodes.Slice):
            return node
        bounds = [bound or nodes.Const(None)
                  for bound in (node.arg.start, node.arg.stop, node.arg.step)]
        return _filter("cut", node.lineno, node.node, *bounds)


def _filter(name: str, line: int, value: nodes.Node, *args: nodes.Expr) -> nodes.Filter:
    made = nodes.Filter(value, PREFIX + name, list(args), [], None, None)
    return made.set_lineno(line)  # type: ignore[return-value]


def _mark(kind: str, line: int, *args: nodes.Expr) -> nodes.Output:
    output = nodes.Output([_filter("mark", line, nodes.Const(kind), *args)])
    return output.set_lineno(line)  # type: ignore[return-value]

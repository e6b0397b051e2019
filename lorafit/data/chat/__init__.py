"""Examples to text with supervised character spans, and from there to tokens with a mask.

A chat template is somebody's program. `program` runs it with limits, `trace` follows which text it
writes for which message, `proof` holds it to showing everything, `turns` finds what the assistant
says, `renderer` chooses what is trained of that, `encoder` makes tokens, and `masks` carries the
choice over to them.
"""

from lorafit.data.chat.masks import Rendered, Span
from lorafit.data.chat.renderer import Renderer
from lorafit.data.chat.templates import check_template, resolve_template

__all__ = ["Rendered", "Renderer", "Span", "check_template", "resolve_template"]

"""SGLang, which does not install without a GPU: what is refused for it is listed, and no more."""

from engines.engine import Engine

ENGINE = Engine(
    name="sglang", title="SGLang", package="sglang", format="sglang",
    why_not="it does not install on a machine without a GPU; what is written is checked by the "
            "rules of its source",
)

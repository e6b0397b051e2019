"""transformers and peft, as anybody loads an adapter or a model with them."""

from environment import Environment

from engines.engine import Engine

ENGINE = Engine(
    name="peft", title="transformers + peft", package="peft", driver="peft_generate.py",
    environment=Environment("engine-peft", ("peft==0.21.2", "transformers==5.23.0",
                                            "accelerate>=1.10")),
    torch="2.13.0", format="peft", merged="all",
)

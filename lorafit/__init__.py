"""lorafit: LoRA fine-tuning driven by YAML recipes. The command line is the interface."""

__version__ = "0.1.0"

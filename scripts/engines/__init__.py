"""The programs that scripts/prove_engines.py gives adapters and merged models to."""

from engines import llama_cpp, mlx_lm, sglang, transformers_peft, vllm_cpu
from engines.engine import Engine

# One line for each program; the table has them in this order.
ENGINES: dict[str, Engine] = {module.ENGINE.name: module.ENGINE for module in (
    transformers_peft,
    vllm_cpu,
    mlx_lm,
    llama_cpp,
    sglang,
)}

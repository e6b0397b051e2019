"""How fast a training step is here, and where its time goes.

`shapes` and `request` say what is asked for, `workload` makes model and rows of it, `sides` are the
ways to train that are compared, `rounds` lets them take turns, `split` and `arithmetic` say what a
step is made of and what it should cost, `run` puts the result together.
"""

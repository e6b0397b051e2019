"""What makes a model with an adapter faster without changing what it computes.

`attention` tells the documents of a row apart without a mask over the row. `linear`, `mlp`,
`experts`, `norm` and `block` give peft's layers, and the modules around them, another forward pass
(`form`); parameters, their names and everything else stay as they are. `head` computes the loss
from hidden states. `speed_up` puts them on a model, one after the other, and keeps what agrees with
the plain path on the model at hand (`watch`), on the device at hand (`proof`).
"""

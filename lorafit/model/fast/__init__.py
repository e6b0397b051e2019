"""What makes a model with an adapter faster without changing what it computes.

`attention` tells the documents of a row apart without a mask over the row. `linear` and `mlp` give
the classes of peft's layers, and of the MLPs around them, another forward pass; parameters, their
names and everything else stay peft's. `head` computes the loss from hidden states. `speed_up` puts
them on a model, one after the other, and keeps what agrees with the plain path on the model at
hand, on the device at hand (`proof`).
"""

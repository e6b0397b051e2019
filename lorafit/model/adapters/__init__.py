"""Adapters of every method: put into a model, described, saved, loaded, taken apart.

add        the recipe's adapter on a base, peft's or lorafit's own
files      tensors and configuration on disk, and back
facts      what is trained, counted exactly
own        what lorafit's own methods (bottleneck, paca, full) have in common; one file each
step_rule  what some methods do beside the optimizer's update
"""

"""The arithmetic of a step on plain tensors, each fast function beside its plain reference.

torch only: what a model is, and what an adapter is, is known in `model/`.
"""

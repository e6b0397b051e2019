"""Malformed recipes and data: drawn by kind, each certain to be malformed by a rule of its own.

A kind is a function from random numbers to a Case; its docstring says why what it draws cannot be
valid. None asks lorafit whether it is.
"""

"""A conversation in the terminal.

`speakers` are who answers, `session` is what was said, `commands` what can be typed besides
messages, `screen` prints, and `loop` reads and goes on until the end.
"""

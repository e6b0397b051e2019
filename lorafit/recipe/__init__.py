"""The recipe: its schema, how it is read from YAML, and how `auto` is decided."""

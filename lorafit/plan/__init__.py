"""What a run will need, told before it: memory, time, tokens, capacity. Imports no torch."""

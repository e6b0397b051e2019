"""How a run is spread over processes: alone, replicated (DDP), sharded (FSDP2).

The recipe does not know: whatever is here, a step's gradient is that of the mean over all of its
supervised tokens.
"""

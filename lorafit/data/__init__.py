"""From files to token ids with a loss mask, and from those to micro-batches.

    sources ─► formats ─► chat ─► dataset ─► batches
"""

"""What an adapter changes, ΔW = W' − W: read, measured, cut to fewer ranks, compared, combined.

factors     LoRA's ΔW of each layer as two thin matrices; its singular values without the product
files       an adapter's file to factors, and back
base        single weights of the base, read from its files
inspection  each layer's ΔW in figures; for methods other than LoRA from the merged weights
held_out    loss and logits on the rows that a run kept
shrink, compare, combine  what is made of them
"""

"""What scripts/prove_reliability.py asks, a row of its table in a file."""

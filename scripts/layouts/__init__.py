"""The same recipe on other numbers of processes: what scripts/prove_layouts.py compares."""

"""The parts of `scripts/bench_peers.py`: one file a tool, the probe, the work and the report."""

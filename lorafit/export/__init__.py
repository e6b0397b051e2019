"""What leaves a run: merged models and adapters, each checked against what was trained."""

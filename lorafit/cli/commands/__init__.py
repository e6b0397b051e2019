"""Arguments and help of the verbs, one module for what belongs together."""

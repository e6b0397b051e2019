"""Loading a base model, putting an adapter on it, and what can be asked of the two together."""

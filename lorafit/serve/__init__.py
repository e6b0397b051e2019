"""Answers from adapters: an engine is started, or a small server of our own, or a terminal."""

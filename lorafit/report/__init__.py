"""Runs as they stand on disk: where each is, what its logs say, and pages that show it.

Reads run directories alone, also while a run goes on, and changes nothing in them.
"""

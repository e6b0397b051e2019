"""Artifacts made public: what would be uploaded, what never is, and the hub.

plan  the files, held against the artifact's proof; secrets and leftovers of training refused
hub   the repository: made, written and read back
"""

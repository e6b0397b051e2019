"""Hostile artifacts, made by code, and what the command line does with them."""

"""Synthetic tasks whose relations are known by construction."""

"""Generating predictions."""

"""Scores, their uncertainty, and comparisons."""

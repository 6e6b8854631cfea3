"""Doors to other evaluation tools; the only importers of lm_eval."""

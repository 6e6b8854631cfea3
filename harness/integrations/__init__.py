"""Integrations with other evaluation tools. Only modules of this package import lm_eval."""

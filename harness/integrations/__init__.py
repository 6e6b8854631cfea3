"""Integrations with other evaluation tools. They and the suite of lm-eval's groups import lm_eval, nothing else."""

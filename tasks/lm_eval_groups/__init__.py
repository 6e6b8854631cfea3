"""Suites of lm-evaluation-harness: its groups, tags and tasks, trained on and scored as lm-eval scores them.

Only modules of this package and of ``harness.integrations`` import lm_eval, which takes seconds to load.
"""

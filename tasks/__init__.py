"""Suites of tasks: parsers, metrics and readers."""

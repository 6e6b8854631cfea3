"""Suites from files: a TOML file names the data, the prompt, the target and the metrics of each task."""

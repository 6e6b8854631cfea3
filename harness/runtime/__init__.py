"""Processes, signals, memory, progress: what knows nothing of runs."""

"""The engine: it knows no method and no task by name."""

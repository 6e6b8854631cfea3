"""The embedded default: small suites and a tiny model, both made for this project."""

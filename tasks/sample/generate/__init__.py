"""The scripts that made the embedded sample."""

"""Configuration: specs, keys, requests."""

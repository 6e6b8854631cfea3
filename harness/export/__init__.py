"""Adapters of finished runs as PEFT folders or merged models."""

"""Adapted layers: expert layers, gates, routing, PEFT files."""

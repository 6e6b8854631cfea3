"""Firefly: Chinese instruction data of 23 kinds."""

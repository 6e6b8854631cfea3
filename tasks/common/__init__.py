"""Readers and metrics shared by the suites."""

"""Balancers: weights of tasks, and combinations of their gradients."""

"""`harness bench`: the cost of training steps."""

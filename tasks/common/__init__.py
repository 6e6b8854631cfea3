"""What several suites share: readers and metrics."""

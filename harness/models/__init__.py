"""Base models: finding, loading, counting."""

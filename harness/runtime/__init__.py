"""Process groups, signals, memory, progress bars and file hashes: nothing here depends on runs."""

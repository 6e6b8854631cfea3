"""Files of runs: records, run directories, adapters."""

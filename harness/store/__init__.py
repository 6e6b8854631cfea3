"""Files of runs: records, run directories, locks and adapters."""

"""One run: resolve, prepare, train, predict, score, and coming back to it."""

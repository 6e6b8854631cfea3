"""The report: a leaderboard, its examples and its training in one HTML file that needs no network."""

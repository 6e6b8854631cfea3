"""Leaderboards: tables, Markdown, exports, pictures, verification and publication."""

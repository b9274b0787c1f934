"""Scores: episodes scored, methods compared, intervals, and adapting to one task."""

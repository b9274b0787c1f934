"""Benchmarks of a user's own configuration, and the measuring that all benchmarks share."""

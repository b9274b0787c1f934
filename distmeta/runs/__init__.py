"""A run directory: its lock and files, its checkpoints, how it is interrupted, and what is shown of it."""

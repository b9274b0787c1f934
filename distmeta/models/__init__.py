"""What adapts: a transformer, its task-axis layers, and the few-shot classifier on top of it."""

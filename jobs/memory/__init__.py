"""A run's memory: its store, how it is filled, and the neighbours planned from it."""

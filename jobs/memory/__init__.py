"""A run's memory: its store, how it is filled, the neighbours planned from it, and what it gives a student."""

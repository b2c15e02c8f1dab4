"""Labelled tasks: corpus, teacher, students and their comparison."""

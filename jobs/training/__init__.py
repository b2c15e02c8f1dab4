"""Distillation on Ray Train and DeepSpeed."""

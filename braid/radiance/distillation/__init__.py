"""Losses and objectives of both distillation stages."""

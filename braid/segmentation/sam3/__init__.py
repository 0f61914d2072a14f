"""The `Sam3Model` that teacher and student share: its call, predictors, tokenizers, checkpoints."""

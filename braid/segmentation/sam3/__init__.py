"""The Sam3Model that teacher and student share: calls, tiny configuration, tokenizers, masks."""

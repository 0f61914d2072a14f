"""The drift field and its loss, with a plain reference."""

"""How far predictions agree with a reference."""

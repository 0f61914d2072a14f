"""KiloNeRF and its volume rendering."""

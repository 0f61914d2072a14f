"""What every strand may use: base of params models, random numbers, plotting, files."""

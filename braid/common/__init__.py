"""What every strand may use: base of params models, random numbers, splits, plotting, files."""

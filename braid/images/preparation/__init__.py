"""Making a set of images: from the built-in digits, noise, or a folder."""

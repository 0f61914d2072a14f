"""The documents, and the program that renders their figures."""

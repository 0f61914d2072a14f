"""Fitting Gaussians to posed images."""

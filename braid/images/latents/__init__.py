"""Latents of images by Stable Diffusion's VAE."""

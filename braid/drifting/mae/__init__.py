"""The latent masked autoencoder in whose features the drift is computed."""

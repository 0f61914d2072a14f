"""Video clips as Wan-synth latents: the data set, its preparation, decoding to frames."""

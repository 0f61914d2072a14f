"""Making data/sa1b: a scan of SA-1B pairs, the built-in images, sampled prompts."""

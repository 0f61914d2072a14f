"""Video clips as Wan-synth latents: shards, conditions, pseudo-classes and how they are judged."""

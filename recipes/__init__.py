"""Full-size settings, ablations and experiments: sparse overrides of params.yaml (`make exp`)."""

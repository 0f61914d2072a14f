"""SA-1B pairs, prompts and batches of both."""

"""SA-1B images with their annotations and prompts."""

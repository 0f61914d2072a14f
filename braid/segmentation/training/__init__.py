"""What both trainings share: batches of prompts, the loss against ground truth."""

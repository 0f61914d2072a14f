"""SAM3 distilled into EfficientSAM3: images, prompts, teacher, student, losses, agreement."""

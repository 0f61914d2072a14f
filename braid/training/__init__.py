"""What every training stage shares: the step loop, checkpoints, devices, optimizers, EMA."""

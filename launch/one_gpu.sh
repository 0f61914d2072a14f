#!/usr/bin/env bash
# One GPU: 8 classes x 64 images x 8 accumulated = 4096 a step; latent MAE 256 x 32 = 8192.
exec "$(dirname "$0")/imagenet_latents.sh" \
  -S image_drift.batches.classes=8 -S image_drift.optimizer.accumulate=8 \
  -S image_mae.batch=256 -S image_mae.optimizer.accumulate=32 "$@"

#!/usr/bin/env bash
# Eight GPUs of one machine: 8 classes x 64 images x 8 = 4096 a step; latent MAE 256 x 4 x 8 = 8192.
exec "$(dirname "$0")/imagenet_latents.sh" \
  -S "launch.train='torchrun --nproc_per_node=8 -m'" \
  -S image_drift.batches.classes=8 -S image_drift.optimizer.accumulate=1 \
  -S image_mae.batch=256 -S image_mae.optimizer.accumulate=4 "$@"

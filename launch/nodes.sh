#!/usr/bin/env bash
# Four machines of eight GPUs: 2 classes x 64 images x 32 = 4096 a step; latent MAE 256 x 32 = 8192.
# HOSTS names them, this one first; all see this folder and the data under the same paths.
: "${HOSTS:?the machines, this one first: HOSTS='a b c d'}"
exec "$(dirname "$0")/imagenet_latents.sh" \
  -S "launch.train='bash launch/on_hosts.sh -m'" \
  -S image_drift.batches.classes=2 -S image_drift.optimizer.accumulate=1 \
  -S image_mae.batch=256 -S image_mae.optimizer.accumulate=1 "$@"

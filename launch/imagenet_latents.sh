#!/usr/bin/env bash
# Latents of ImageNet, a latent MAE and one-step drifting at the sizes of arXiv 2602.04770's ablation.
# IMAGENET is a folder with a folder a class, SD_VAE one of diffusers' AutoencoderKL, both absolute.
# one_gpu.sh, one_node.sh and nodes.sh say on what machines; further -S of yours are passed on.
set -euo pipefail
cd "$(dirname "$0")/.."
exec dvc exp run prepare_images train_image_mae train_drift_image evaluate_drift_image \
  -S "images.source='${IMAGENET:?a folder with a folder a class}'" \
  -S "images.sd_vae='${SD_VAE:?a folder of AutoencoderKL}'" \
  -S images.size=256 -S images.input_space=latent -S images.cache_mib=0 \
  -S hardware.device=cuda -S hardware.threads=8 -S hardware.precision=bfloat16 \
  -S image_mae.width=256 -S 'image_mae.blocks=[3,4,6,3]' -S image_mae.steps=30000 \
  -S image_mae.head_fraction=0.1 -S image_mae.head_weight=0.1 -S image_mae.optimizer.lr=0.004 \
  -S image_mae.optimizer.ema_decay=0.9995 -S image_mae.optimizer.warmup=0.13 \
  -S image_mae.optimizer.lr_floor=1.0 \
  -S 'image_drift.corruption.given=[128,64,0]' -S image_drift.features.encoder_weight=1.0 \
  -S 'image_drift.features.families=[clip,patch2,patch4,rms]' \
  -S image_drift.batches.generated=64 -S image_drift.batches.positives=64 \
  -S image_drift.batches.unconditional=16 -S image_drift.batches.bank=128 \
  -S image_drift.batches.bank_unconditional=1000 -S image_drift.batches.alpha_max=4.0 \
  -S image_drift.refiner.dim=768 -S image_drift.refiner.depth=12 \
  -S image_drift.refiner.heads=12 -S image_drift.refiner.style=768 \
  -S image_drift.optimizer.lr=0.0002 -S image_drift.optimizer.ema_decay=0.999 \
  -S image_drift.optimizer.warmup=0.17 -S image_drift.optimizer.lr_floor=1.0 \
  -S image_drift.training.steps=30000 -S image_drift.training.validate_every=1000 \
  "$@"

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
  -S image_mae.head_share=0.1 -S image_mae.head_weight=0.1 -S image_mae_optimisation.lr=0.004 -S image_mae_optimisation.ema_decay=0.9995 \
  -S image_mae_optimisation.warmup=0.13 -S image_mae_optimisation.lr_floor=1.0 \
  -S 'image_corruption.known=[128,64,0]' \
  -S image_features.encoder_weight=1.0 -S 'image_features.families=[clip,patch2,patch4,rms]' \
  -S image_batches.generated=64 -S image_batches.positives=64 -S image_batches.unconditional=16 \
  -S image_batches.queue=128 -S image_batches.queue_unconditional=1000 -S image_batches.alpha_max=4.0 \
  -S image_refiner.dim=768 -S image_refiner.depth=12 -S image_refiner.heads=12 -S image_refiner.style=768 \
  -S image_refiner_optimisation.lr=0.0002 -S image_refiner_optimisation.ema_decay=0.999 \
  -S image_refiner_optimisation.warmup=0.17 -S image_refiner_optimisation.lr_floor=1.0 \
  -S image_training.steps=30000 -S image_training.validate_every=1000 \
  "$@"

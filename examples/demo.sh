#!/usr/bin/env bash
# The main job from images to predictions, on handwritten digits, without a network:
# three ImageNet backbones are cached and screened, the best is fine-tuned and asked.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p demo
cd demo
export HUBRETRAIN_STORE=$PWD/modules

say() {
  printf '\n$ %s\n' "$*"
  "$@"
}

say python "$here/digits.py" data/digits
say hubretrain cache --module efficientnet_lite0 --module efficientnet_lite1 \
  --module efficientnet_lite2 --views 1
say hubretrain fit
# Ten layers, because backpropagation through all of them takes minutes an epoch without a GPU.
# Digits are not mirrored.
say hubretrain finetune --unfreeze-last 10 --epochs 1 --no-horizontal-flip --crop 0.8
say hubretrain predict runs/digits data/digits/3/0003.png data/digits/7/0007.png \
  data/digits/8/0008.png
printf '\nEverything is in %s: cache/, runs/digits/leaderboard.csv, runs/digits/export/.\n' "$PWD"

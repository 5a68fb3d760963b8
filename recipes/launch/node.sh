#!/bin/bash
# One of several machines of 8 GPUs; the same words on each, but for its own number:
#   MAIN=HOST NODES=4 NODE=0 recipes/launch/node.sh --config imagenet_resnet50 --data.root DIR --output RUN
# RUN lies on a disk that all of them see: the main process writes there, and all read from there to resume.
set -eu
exec accelerate launch --multi_gpu --num_machines "$NODES" --num_processes "$((NODES * ${GPUS:-8}))" \
  --machine_rank "$NODE" --main_process_ip "$MAIN" --main_process_port "${PORT:-29500}" \
  --mixed_precision bf16 "$(dirname "$0")/../train.py" "$@"

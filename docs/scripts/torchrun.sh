#!/bin/bash
# A pretraining on several nodes without a scheduler. The same line on every node, FIRST being the name of one of them:
#
#     docs/scripts/torchrun.sh NODES FIRST /data/images --recipe moco-v2 --workspace /shared/mocoembed
#
# PROCESSES   on each node; by default one for each GPU
# PORT        of FIRST, free and open to the others (29400)
# JOB         a name that no other job with the same FIRST and PORT has
set -euo pipefail

if [ "$#" -lt 3 ]; then
    echo "usage: $0 NODES FIRST IMAGES [OPTIONS OF mocoembed pretrain]" >&2
    exit 2
fi
nodes=$1
first=$2
shift 2

# `--` keeps torchrun from reading options of pretrain (--run) as its own. It passes on the signals named to all
# processes of its node, which save; its own exit status is 1 then.
exec torchrun --nnodes="$nodes" --nproc-per-node="${PROCESSES:-gpu}" \
    --rdzv-backend=c10d --rdzv-endpoint="$first:${PORT:-29400}" --rdzv-id="${JOB:-mocoembed}" \
    --signals-to-handle=SIGTERM,SIGINT,SIGUSR1 \
    --no-python -- mocoembed pretrain "$@"

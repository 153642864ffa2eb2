#!/usr/bin/env bash
# The paper's multi-target experiment, Table 2: N target users in one model, and the clean run for the accuracy drop.
#
#   bash multi-target.sh 100                  CIFAR-100, as in the paper (20, 50, 100, 200, 300 or 500 users)
#   bash multi-target.sh 20 50 100            several of them
#   QUICK=1 bash multi-target.sh 10           small, on the embedded photos, on a CPU
#   EXTRA="--data_root /data" bash multi-target.sh 100    more flags for every run; DATASET, RES_FOLDER, ... likewise
#   JOBS=4 bash multi-target.sh 20 50 100     several runs at once; LAUNCHER=ray: on a Ray cluster (see launch/README.md)
set -uo pipefail
source "$(dirname "$0")/launch/sweep.sh"
if [ $# -eq 0 ]; then
    echo "error: no number of target users; run for example: bash multi-target.sh 100" >&2
    exit 2
fi

if [ -n "${QUICK:-}" ]; then
    recipe="--dataset ${DATASET:-photos}"
else
    recipe="--dataset ${DATASET:-cifar100} --lr 0.1 --train_size 25000 --epoch 100 --marked_samples_per_user 25
            --num_of_non_member_user 5000"
fi
for users in "$@"; do
    # shellcheck disable=SC2086
    run "multiTarget-$users" $recipe --num_of_multiTarget_diffCls "$users" \
        --img_blending_ratio .7 --noise_injection_type perlin --noise_norm 8
done
# shellcheck disable=SC2086
run multiTarget-clean $recipe --clean_train 1
finish multi-target

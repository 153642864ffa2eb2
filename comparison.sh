#!/usr/bin/env bash
# The competing methods (section 4.1, appendices D, E, F): every method of baselines/, ours beside the paper's figures.
#
#   bash comparison.sh                                everything, as in the paper (days on one GPU)
#   QUICK=1 bash comparison.sh                        small, on the embedded photos, on a CPU
#   METHODS="isotopes lira" bash comparison.sh        some of them; a new one is one file more
#   SEEDS="1 2 3" bash comparison.sh                  each seed is a run of its own (default 1 2 3; QUICK: 1)
#   EXTRA="--data_root /data" bash comparison.sh      more flags for every run; DATASET, OUTLIERS, WORK, RES_FOLDER, ...
#   JOBS=4 bash comparison.sh                         several runs at once; LAUNCHER=ray: on a Ray cluster: launch/README.md
#
# OUTLIERS: the images that data isotopes blend in (a folder, or tinyimagenet). Models are kept in WORK, so that the
# same command goes on after an interruption.
set -uo pipefail
source "$(dirname "$0")/launch/sweep.sh"
FOLDER=$RES_FOLDER/comparison
WORK=${WORK:-runs/baselines}

# compare METHOD SEED: one run of one method, in METHOD-seedSEED.
compare() {
    local flags=()
    if [ -n "${QUICK:-}" ]; then
        flags+=(--quick 1 --dataset "${DATASET:-photos}")
    else
        flags+=(--dataset "${DATASET:-cifar100}")
        # LiRA trains on half of the data set; the others on half of CIFAR's, of which a fifth is for validation.
        [ "$1" = lira ] && flags+=(--train_size "${LIRA_SIZE:-50000}" --val_portion 0)
    fi
    [ "$1" = isotopes ] && [ -n "${OUTLIERS:-}" ] && flags+=(--ood_pattern "$OUTLIERS")
    # shellcheck disable=SC2086  # EXTRA holds several words on purpose.
    start "$1-seed$2" "$PYTHON" -m "baselines.$1" "${flags[@]}" --seed "$2" --out "$FOLDER/$1-seed$2" --work "$WORK" \
        ${EXTRA:-}
}

for seed in ${SEEDS:-${SEED:-$([ -n "${QUICK:-}" ] && echo 1 || echo 1 2 3)}}; do
    for method in ${METHODS:-$(ls baselines | sed -n "s/\.py$//p" | grep -vxE "__init__|common|sequential|summary")}; do
        compare "$method" "$seed"
    done
done
finish_with -m baselines.summary --folder "$FOLDER"

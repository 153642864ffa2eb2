#!/usr/bin/env bash
# The paper's ablation (appendix C and Table 5): what marking consists of, how strong it is, where outlier features come
# from, which noise, how samples are judged, and how many of them the model was trained on.
#
#   bash ablation.sh                                  everything, as in the paper (days on one GPU)
#   QUICK=1 bash ablation.sh                          small, on the embedded photos, on a CPU
#   TABLES="8 9" SEEDS="1 2 3" bash ablation.sh       8, 9, 12, 13, noise, 5; each seed is a run of its own
#   EXTRA="--data_root /data" bash ablation.sh        more flags for every run; DATASET, USERS, SAMPLES, RES_FOLDER, ...
#   OUTLIERS="/folder/of/images" bash ablation.sh     Fig. 13's other outlier features (paper: tinyimagenet celeba)
#   CALIBRATE=1 bash ablation.sh                      audits also beside a model that has seen nobody (not Table 5)
#   JOBS=4 bash ablation.sh                           several runs at once; LAUNCHER=ray: on a Ray cluster: launch/README.md
set -uo pipefail
source "$(dirname "$0")/launch/sweep.sh"
TABLES=${TABLES:-8 9 12 13 noise 5}

if [ -n "${QUICK:-}" ]; then
    recipe="--dataset ${DATASET:-photos} $QUICK_RECIPE"
    SAMPLES=${SAMPLES:-8 5 3} FEW_SAMPLES=${FEW_SAMPLES:-3} USERS=${USERS:-5} FEW_USERS=${FEW_USERS:-1}
    RATIOS=${RATIOS:-0.5 0.9} NORMS=${NORMS:-2 16} SHARES=${SHARES:-0.5 0.3} SHARED=${SHARED:-10}
    OUTLIERS=${OUTLIERS:-} OUTLIER_SAMPLES=${OUTLIER_SAMPLES:-$FEW_SAMPLES}
else
    recipe="--dataset ${DATASET:-cifar100} --lr 0.1 --train_size 25000 --epoch 100 --num_of_non_member_user 5000"
    SAMPLES=${SAMPLES:-25 15 10 5} FEW_SAMPLES=${FEW_SAMPLES:-5} USERS=${USERS:-100} FEW_USERS=${FEW_USERS:-5}
    RATIOS=${RATIOS:-0.5 0.6 0.8 0.9} NORMS=${NORMS:-2 4 12 16} SHARES=${SHARES:-0.9 0.7 0.5 0.3 0.2} SHARED=${SHARED:-50}
    OUTLIERS=${OUTLIERS:-tinyimagenet celeba} OUTLIER_SAMPLES=${OUTLIER_SAMPLES:-5 10 15 20 25}
fi

wanted() { [[ " $TABLES " == *" $1 "* ]]; }

# cell TAG SAMPLES FLAGS...: one run with USERS users; blend and noise as usual unless FLAGS say otherwise.
declare -A DONE
cell() {
    local tag=$1 samples=$2
    shift 2
    [ -n "${DONE[$tag-${SEED:-}]:-}" ] && return  # several tables share it
    DONE[$tag-${SEED:-}]=1
    # shellcheck disable=SC2086
    run "ablation-$tag" $recipe --num_of_multiTarget_diffCls "$USERS" --marked_samples_per_user "$samples" "$@" \
        ${CALIBRATE:+--calibrate "$(reference)"}
}
# The model beside which all runs of a seed are audited: clean, on images that they leave out (see experiment/README.md).
reference() { echo "$RES_FOLDER/ablation-reference${SEED:+-seed$SEED}"; }
MARKED="--img_blending_ratio .7 --noise_injection_type perlin --noise_norm 8"

if [ -n "${CALIBRATE:-}" ]; then
    # shellcheck disable=SC2086
    for SEED in ${SEEDS:-${SEED:-1}}; do
        run ablation-reference $recipe --clean_train 1 --other_images 1 --exact_keys 0 --marked_samples_per_user 1 \
            --out "$(reference)"
    done
    launch  # with JOBS they are only queued, and the runs need them
fi

# shellcheck disable=SC2086
for SEED in ${SEEDS:-${SEED:-1}}; do
    for samples in $SAMPLES; do
        if wanted 8 || wanted 9; then
            cell "full-$samples" "$samples" $MARKED
        fi
        if wanted 8; then
            cell "blend-$samples" "$samples" --img_blending_ratio .7 --noise_injection_type none
            cell "noise-$samples" "$samples" --img_blending_ratio 1 --noise_injection_type perlin --noise_norm 8
            cell "none-$samples" "$samples" --clean_train 1
        fi
    done
    if wanted 12 || wanted noise; then
        cell "full-$FEW_SAMPLES" "$FEW_SAMPLES" $MARKED
    fi
    if wanted 12; then
        for ratio in $RATIOS; do
            cell "ratio-$ratio" "$FEW_SAMPLES" --img_blending_ratio "$ratio" --noise_injection_type perlin --noise_norm 8
        done
        for norm in $NORMS; do
            cell "norm-$norm" "$FEW_SAMPLES" --img_blending_ratio .7 --noise_injection_type perlin --noise_norm "$norm"
        done
    fi
    if wanted noise; then
        for noise in uniform gabor; do
            cell "$noise" "$FEW_SAMPLES" --img_blending_ratio .7 --noise_injection_type "$noise" --noise_norm 8
        done
    fi
    if wanted 13; then
        for source in $OUTLIERS; do
            for samples in $OUTLIER_SAMPLES; do
                cell "full-$samples" "$samples" $MARKED
                cell "outliers-${source##*/}-$samples" "$samples" $MARKED --ood_pattern "$source"
            done
        done
        [ -n "$OUTLIERS" ] || echo "Fig. 13 is left out: OUTLIERS names no folder of images"
    fi
    if wanted 5; then
        for users in $USERS $FEW_USERS; do
            for share in 1 $SHARES; do
                # The marked samples that a model was not trained on are among those that the reference has seen.
                CALIBRATE='' USERS=$users cell "share-$users-$share" "$SHARED" $MARKED --used_share "$share"
            done
        done
    fi
done
finish ablation

#!/usr/bin/env bash
# What a model's owner may do against the audit (section 5.2): every countermeasure of countermeasures/, for one target
# user and (section 5.2.5) for many, and the detection of marked images among the training images (5.2.6).
#
#   bash countermeasures.sh                           everything, as in the paper (days on one GPU)
#   QUICK=1 bash countermeasures.sh                   small, on the embedded photos, on a CPU
#   DEFENCES="pruning:amount=0.7 hamp" bash countermeasures.sh       some of them; a new one is one file more
#   SEEDS="1 2 3" bash countermeasures.sh             each seed is a run of its own
#   DETECTION="--features FILE ..." bash countermeasures.sh          flags of detection/input_detection.py
#   EXTRA="--data_root /data" bash countermeasures.sh more flags for every run; DATASET, CLASSES, USERS, RES_FOLDER, ...
#   JOBS=4 bash countermeasures.sh                    several runs at once; LAUNCHER=ray: on a Ray cluster: launch/README.md
set -uo pipefail
source "$(dirname "$0")/launch/sweep.sh"

if [ -n "${QUICK:-}" ]; then
    recipe="--dataset ${DATASET:-photos} $QUICK_RECIPE"
    CLASSES=${CLASSES:-36} USERS=${USERS:-5}
    # DP-SGD without copies of each image, and SELENA with 5 networks: what two cores do in minutes.
    TRAINING=${TRAINING-dp_sgd:noise_multiplier=0.03,multiplicity=1 selena:models=5,left_out=2 hamp
              early_stopping:share=0.5 dropout:rate=0.5 gaussian_noise:std=0.1 randaugment:operations=3
              destripe_training}
    TRAINING_MANY=${TRAINING_MANY-}
    FINISHED=${FINISHED-fine_tuning:lr=0.01 fine_tuning:lr=0.05 fine_tuning:lr=0.1 pruning:amount=0.5 pruning:amount=0.7
              output_noise:sigma=1 output_noise:sigma=5 label_only destripe_queries refuse_marked}
else
    recipe="--dataset ${DATASET:-cifar100} --lr 0.1 --train_size 25000 --epoch 100 --marked_samples_per_user 25
            --num_of_non_member_user 5000"
    CLASSES=${CLASSES:-17 36 69 80 93} USERS=${USERS:-25}
    TRAINING=${TRAINING-$(printf 'dp_sgd:noise_multiplier=%s ' 0.01 0.03 0.05 0.2 0.3) selena hamp
              $(printf 'early_stopping:share=%s ' 0.2 0.4 0.6 0.8) $(printf 'dropout:rate=%s ' 0.1 0.3 0.5 0.7 0.9)
              $(printf 'gaussian_noise:std=%s ' 0.02 0.05 0.1 0.2 0.5) $(printf 'randaugment:operations=%s ' 3 6 9 12 15)
              destripe_training}
    TRAINING_MANY=${TRAINING_MANY-$TRAINING}
    FINISHED=${FINISHED-$(printf 'fine_tuning:lr=%s ' 0.00001 0.0001 0.001 0.01 0.05 0.1)
              $(printf 'pruning:amount=%s ' 0.1 0.2 0.3 0.4 0.5 0.6 0.7 0.8 0.9)
              $(printf 'output_noise:sigma=%s ' 0.5 1 2 3 4 5) label_only destripe_queries refuse_marked}
fi
MARKED="--img_blending_ratio .7 --noise_injection_type perlin --noise_norm 8"

# each FLAG...: call `defended` for every seed and for one user of each class, then for many users.
# shellcheck disable=SC2086
targets() {
    local class
    for SEED in ${SEEDS:-${SEED:-1}}; do
        for class in $CLASSES; do
            "$1" "one-$class" --target_user_cls "$class"
        done
        [ "$USERS" -gt 0 ] && "$1" "many-$USERS" --num_of_multiTarget_diffCls "$USERS"
    done
}
# shellcheck disable=SC2086
undefended() {
    local who=$1
    shift
    run "countermeasure-none-$who" $recipe $MARKED "$@"
}
# shellcheck disable=SC2086
trained() {
    local who=$1 defence defences=$TRAINING
    shift
    [[ $who == many-* ]] && defences=$TRAINING_MANY
    for defence in $defences; do
        run "countermeasure-$(tag_of "$defence")-$who" $recipe $MARKED "$@" --countermeasure "$defence"
    done
}
# shellcheck disable=SC2086
finished() {
    local who=$1 defence
    shift
    for defence in $FINISHED; do
        run "countermeasure-$(tag_of "$defence")-$who" $recipe $MARKED "$@" --countermeasure "$defence" \
            --base_model "countermeasure-none-$who${SEED:+-seed$SEED}"
    done
}
tag_of() { printf '%s' "$1" | tr -c 'a-zA-Z0-9._-' '-'; }

if [ -n "${DEFENCES:-}" ]; then
    TRAINING=$DEFENCES TRAINING_MANY=$DEFENCES FINISHED=""
fi
targets undefended
targets trained
launch  # what follows takes the undefended models over
targets finished

# Input detection looks at images and trains no model of the sweep. Its features come from a network that was trained on
# other images: torchvision's ImageNet weights, which QUICK does not download; DETECTION="--features FILE ..." names one.
# shellcheck disable=SC2086
if [ -z "${DEFENCES:-}" ]; then
    DETECTION=${DETECTION-$([ -n "${QUICK:-}" ] || echo "--dataset ${DATASET:-cifar100} --features resnet18_pretrained")}
    if [ -n "$DETECTION" ]; then
        start input-detection "$PYTHON" -m detection.input_detection $DETECTION --seed ${SEEDS:-${SEED:-1}} \
            --out "$RES_FOLDER/input-detection"
    else
        echo "Input detection is left out: DETECTION names no network for features"
    fi
fi
finish countermeasures

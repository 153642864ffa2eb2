#!/usr/bin/env bash
# The paper's single-target experiments: Table 1 (data sets), Table 6 (networks), Table 7 (training-set sizes), each
# with the clean runs (no data marking, same samples) that the accuracy drop and the unmarked baseline come from.
#
#   bash single-target.sh                              everything, as in the paper (days on one GPU)
#   QUICK=1 bash single-target.sh                      the same sweep small, on the embedded photos, on a CPU
#   DATASETS="cifar10" TABLES="1" bash single-target.sh
#   EXTRA="--data_root /data" bash single-target.sh    more flags for every run; RES_FOLDER, CKPT_FOLDER, PYTHON likewise
#   JOBS=4 bash single-target.sh                       several runs at once; LAUNCHER=ray: on a Ray cluster: launch/README.md
set -uo pipefail
source "$(dirname "$0")/launch/sweep.sh"
TABLES=${TABLES:-1 6 7}

# The target classes of the paper; TARGET_CLASSES="0 1" chooses others.
classes_of() {
    case ${TARGET_CLASSES:-$1} in
        cifar100) echo "17 36 69 80 93" ;;
        tinyimagenet) echo "4 58 102 168 184" ;;
        celeba) echo "58 95 164 228 306" ;;
        artbench) echo "0 1 5 7 8" ;;
        *[!0-9\ ]*) echo "0 2 5 6 9" ;;  # cifar10, and data sets that the paper does not have
        *) echo "$TARGET_CLASSES" ;;
    esac
}
MARKED="--img_blending_ratio .7 --noise_injection_type perlin --noise_norm 8"
CLEAN="--clean_train 1 --scaled_loss 1 --instance_mi 1"

# targets TAG CLASSES FLAGS...: one model for each class, then the clean one.
targets() {
    local tag=$1 classes=$2 class
    shift 2
    # shellcheck disable=SC2086
    for class in $classes; do
        run "${tag}singleTarget-$class" "$@" --target_user_cls "$class" $MARKED
    done
    # shellcheck disable=SC2086
    run "${tag}clean" "$@" --target_user_cls $classes $CLEAN
}

wanted() { [[ " $TABLES " == *" $1 "* ]]; }

if [ -n "${QUICK:-}" ]; then
    # Three of the five classes, and one other network and size: under 10 minutes on two cores.
    wanted 1 && targets "" "36 4 31" --dataset photos
    wanted 6 && targets "wideresnet102-" 36 --dataset photos --net_type wideresnet102 --epoch 60
    wanted 7 && targets "1000-" 36 --dataset photos --train_size 1000
    finish single-target
    exit
fi

if wanted 1; then
    for dataset in ${DATASETS:-cifar100 tinyimagenet celeba artbench cifar10}; do
        case $dataset in
            cifar*) recipe="--lr 0.1 --train_size 25000 --epoch 100 --marked_samples_per_user 25" ;;
            celeba) recipe="--lr 0.01 --train_size 2000 --epoch 30 --marked_samples_per_user 2" ;;
            *) recipe="--lr 0.01 --train_size 25000 --epoch 30 --marked_samples_per_user 25" ;;
        esac
        # shellcheck disable=SC2086
        targets "" "$(classes_of "$dataset")" --dataset "$dataset" $recipe --num_of_non_member_user 5000
    done
fi
cifar100="--dataset cifar100 --lr 0.1 --epoch 100 --marked_samples_per_user 25 --num_of_non_member_user 5000"
if wanted 6; then
    for net in resnet resnext densenet googlenet senet; do
        # shellcheck disable=SC2086
        targets "$net-" "$(classes_of cifar100)" $cifar100 --train_size 25000 --net_type "$net"
    done
fi
if wanted 7; then
    for size in 20000 15000 10000 5000; do
        # shellcheck disable=SC2086
        targets "$size-" "$(classes_of cifar100)" $cifar100 --train_size "$size"
    done
fi
finish single-target

#!/usr/bin/env bash
# The paper's experiment 3 (section 6): ResNet-50 and Swin-T trained on ImageNet trees of 1,000 users with 125, 63 and
# 32 marked samples each, audited, in one table beside the paper's figures. Finished audits are only shown again.
#
#   bash imagenet-eval.sh &> R-imagenet-eval
#   NETS="resnet50" SAMPLES="125 63" DATA=/data/imagenet-trees bash imagenet-eval.sh
#   EXTRA="--device cuda:1" bash imagenet-eval.sh       more flags for every audit; RES_FOLDER, PYTHON likewise
#
# DATA (default dataset/imagenet-audit) has a tree of imagenet-prepare.py for each number of samples, DATA/tree-125 and
# so on, and the models trained on them, DATA/resnet50-125.pth and so on. Each has its own variable, too:
#   TREE_125=...  CHECKPOINT_resnet50_125=...  VAL (default: DATA/tree-125/val and so on)
# The samples of a tree are not cut down to make a smaller experiment: a model that has seen 125 images of each user is
# another experiment than one that has seen 63.
set -uo pipefail
source "$(dirname "$0")/launch/sweep.sh"
DATA=${DATA:-dataset/imagenet-audit}
NETS=${NETS:-resnet50 swin_t}
SAMPLES=${SAMPLES:-125 63 32}

# audit NET SAMPLES: one cell of the table.
audit() {
    local net=$1 samples=$2 tree checkpoint
    local tree_name=TREE_$samples checkpoint_name=CHECKPOINT_${net//[^A-Za-z0-9]/_}_$samples
    tree=${!tree_name:-$DATA/tree-$samples}
    checkpoint=${!checkpoint_name:-$DATA/$net-$samples.pth}
    printf '\n=== %s, %s samples a user\n' "$net" "$samples"
    if [ ! -e "$checkpoint" ] || [ ! -d "$tree" ]; then
        FAILED+=("$net-$samples ($checkpoint or $tree does not exist; see the README for how to make them)")
        return
    fi
    # shellcheck disable=SC2086  # EXTRA holds several words on purpose.
    "$PYTHON" imagenet-audit.py --resume_path "$checkpoint" --arch "$net" --manifest "$tree/manifest.json" \
        --member_data_folder "$tree/members" --non_member_data_folder "$tree/non_members" \
        --val_set_data_folder "${VAL:-$tree/val}" --marked_samples_per_user "$samples" \
        --out "$RES_FOLDER/imagenet-$net-$samples" ${EXTRA:-} && return
    local code=$?
    [ "$code" -eq 130 ] && exit 130
    FAILED+=("$net-$samples (exit code $code)")
}

for net in $NETS; do
    for samples in $SAMPLES; do
        audit "$net" "$samples"
    done
done

# The paper gives 0.00 for 125 and 63 samples, and no number for 32 (Fig. 10 shows a curve for ResNet-50).
"$PYTHON" - "$RES_FOLDER" <<'TABLE' || FAILED+=("table")
import json
import sys
from pathlib import Path

PAPER = {("resnet50", 125): ("0.00", "75.09"), ("swin_t", 125): ("0.00", "80.29"), ("resnet50", 63): ("0.00", "-")}
print(f"\n{'network':<12}{'samples':>8}{'FPR@100%TPR':>14}{'95 % interval':>16}{'paper':>7}{'AUC':>9}"
      f"{'accuracy':>10}{'paper':>7}")
for path in sorted(Path(sys.argv[1]).glob("imagenet-*/result.json")):
    result = json.loads(path.read_text(encoding="utf-8"))
    if not {"arch", "marked_samples_per_user"} <= result.get("settings", {}).keys():
        continue
    net, samples = result["settings"]["arch"].split(":")[-1], result["settings"]["marked_samples_per_user"]
    audit, accuracy = result["audit"]["set"], result["accuracy"]["validation"]
    low, high = (f"{100 * end:.2f}" for end in audit["fpr_interval"])
    paper = PAPER.get((net, samples), ("-", "-"))
    print(f"{net:<12}{samples:>8}{100 * audit['fpr_at_100_tpr']:>14.2f}{f'{low}-{high}':>16}{paper[0]:>7}"
          f"{audit['auc']:>9.4f}{'-' if accuracy is None else f'{100 * accuracy:.2f}':>10}{paper[1]:>7}")
TABLE
if [ ${#FAILED[@]} -gt 0 ]; then
    printf 'not finished: %s\n' "${FAILED[@]}" >&2
    exit 1
fi

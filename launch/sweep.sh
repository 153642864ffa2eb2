# Shared by the sweep scripts (sourced, not run): the interpreter, and `run`, which trains one cell of a table.
# A finished run is only shown again; a run that fails is reported at the end, and the others go on.
#
#   JOBS=4 bash single-target.sh            four runs at once on this machine (default 1: one after the other)
#   LAUNCHER=ray GPUS_PER_RUN=0.25 bash single-target.sh
#                                           as tasks of a Ray cluster (pip install ray); LAUNCHER=local is the default.
#                                           CPUS_PER_RUN, RETRIES, RAY_ADDRESS: see launch/README.md
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
RES_FOLDER=${RES_FOLDER:-saved_res$([ -n "${QUICK:-}" ] && echo -quick)}
CKPT_FOLDER=${CKPT_FOLDER:-checkpoint$([ -n "${QUICK:-}" ] && echo -quick)}
# Of ablation.sh and countermeasures.sh, whose many runs have to fit into 15 minutes.
QUICK_RECIPE=${QUICK_RECIPE---train_size 1000 --epoch 100}
FAILED=()
export LAUNCHER=${LAUNCHER:-local} JOBS=${JOBS:-1}
QUEUE=()  # the commands that wait for launch, which one run after the other on this machine does without

# SEED=2 adds --seed 2 to every run and the seed to its tag: several seeds can share one folder and one table.
# run TAG FLAGS...: train.py with the folders of this sweep and, behind the script's own flags, those in $EXTRA.
run() {
    local tag=$1${SEED:+-seed$SEED}
    shift
    set -- "$@" ${SEED:+--seed "$SEED"}
    # shellcheck disable=SC2086  # EXTRA holds several words on purpose.
    start "$tag $*" "$PYTHON" train.py "$@" --save_tag "$tag" --res_folder "$RES_FOLDER" --ckpt_folder "$CKPT_FOLDER" \
        ${EXTRA:-}
}

# start NAME COMMAND...: run a command now, or queue it for `launch`.
start() {
    local name=$1
    shift
    if [ "$LAUNCHER $JOBS" != "local 1" ]; then
        QUEUE+=("$(quoted "$@")")
        return
    fi
    printf '\n=== %s\n' "$name"
    "$@" && return
    local code=$?
    [ "$code" -eq 130 ] && exit 130
    FAILED+=("${name%% *} (exit code $code)")
}

# quoted WORDS...: one line that a shell reads as these words (printf %q has escapes of its own for some characters).
quoted() {
    local word
    for word in "$@"; do
        printf "'%s' " "${word//\'/\'\\\'\'}"
    done
}

# launch: run what is queued, in parallel. Bad input (2) and Ctrl-C (130) end the sweep.
launch() {
    [ ${#QUEUE[@]} -eq 0 ] && return
    printf '%s\n' "${QUEUE[@]}" | "$PYTHON" -m launch --logs "$RES_FOLDER/logs"
    local code=$?
    [ "$code" -gt 1 ] && exit "$code"
    [ "$code" -eq 0 ] || FAILED+=("the runs that are named above the tables")
    QUEUE=()
}

# finish SWEEP: run what is queued, print the tables, then name what failed.
finish() {
    finish_with -m paper.tables "$1" --res_folder "$RES_FOLDER"
}

# finish_with SCRIPT FLAGS...: the same with another script (or -m MODULE) for the tables.
finish_with() {
    launch
    printf '\n'
    "$PYTHON" "$@" || FAILED+=("tables")
    if [ ${#FAILED[@]} -gt 0 ]; then
        printf 'not finished: %s\n' "${FAILED[@]}" >&2
        exit 1
    fi
}

# Shared by the sweep scripts (sourced, not run): the interpreter, and `run`, which trains one cell of a table.
# A finished run is only shown again; a run that fails is reported at the end, and the others go on.
cd "$(dirname "${BASH_SOURCE[0]}")" || exit 1
PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
RES_FOLDER=${RES_FOLDER:-saved_res$([ -n "${QUICK:-}" ] && echo -quick)}
CKPT_FOLDER=${CKPT_FOLDER:-checkpoint$([ -n "${QUICK:-}" ] && echo -quick)}
FAILED=()

# SEED=2 adds --seed 2 to every run and the seed to its tag: several seeds can share one folder and one table.
# run TAG FLAGS...: train.py with the folders of this sweep and, behind the script's own flags, those in $EXTRA.
run() {
    local tag=$1${SEED:+-seed$SEED}
    shift
    set -- "$@" ${SEED:+--seed "$SEED"}
    printf '\n=== %s %s\n' "$tag" "$*"
    # shellcheck disable=SC2086  # EXTRA holds several words on purpose.
    "$PYTHON" train.py "$@" --save_tag "$tag" --res_folder "$RES_FOLDER" --ckpt_folder "$CKPT_FOLDER" ${EXTRA:-} && return
    local code=$?
    [ "$code" -eq 130 ] && exit 130
    FAILED+=("$tag (exit code $code)")
}

# finish SWEEP: print the tables, then name what failed.
finish() {
    printf '\n'
    "$PYTHON" tables.py "$1" --res_folder "$RES_FOLDER" || FAILED+=("tables of $1")
    if [ ${#FAILED[@]} -gt 0 ]; then
        printf 'not finished: %s\n' "${FAILED[@]}" >&2
        exit 1
    fi
}

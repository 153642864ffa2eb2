"""Privacy Meter: how much does a training pipeline give away about the records that it trains on?

Example: python privacy-audit.py --cf configs/digits.yaml
Loads the data, trains target and reference models (or takes those that are there), asks every model about every
record, runs the membership inference attacks with each model as target in turn, and writes the report. All files lie
below the config's run.log_dir; the same command goes on where an interrupted one stopped. LAUNCHER=local|ray and JOBS=4
train several models at once. privacy/README.md lists every field.

From files alone, without a model: python privacy-audit.py --scores FOLDER
As a check of one's own: --fail_if "tpr@0.001 > 0.01 or auc.low > 0.6" ends with exit code 3 where that is so.
"""

from kit.errors import run_script

WIDTH = 30  # of an attack's name
LIMIT_BROKEN = 3


def main():
    from kit import cli
    from privacy import STAGES

    parser = cli.Parser(__doc__)
    parser.add_argument("--cf", help="the YAML file (default configs/digits.yaml)")
    parser.add_argument("--scores", metavar="FOLDER", help="a folder with scores.yaml and a table (default: --cf)")
    parser.add_argument("--out", metavar="FOLDER", help="of --scores: where the report goes (default FOLDER/report)")
    parser.add_argument(
        "--stop_after", choices=STAGES, default="report", help="the last stage to run (default report, all of them)"
    )
    parser.add_argument(
        "--fail_if",
        metavar="LIMIT",
        help='end with exit code 3 where this is so, such as "tpr@0.001 > 0.01" (default: no limit)',
    )
    parser.add_argument(
        "--train_model",
        type=cli.number(int, 0),
        metavar="ID",
        help="train this one model, if it is missing, and nothing else: for `python -m launch` (default: all)",
    )
    args = parser.parse_args()
    if args.scores is not None:
        if args.cf is not None or args.train_model is not None or args.stop_after != "report":
            parser.error("--scores goes without --cf, --train_model and --stop_after")
        return of_scores(args)
    if args.out is not None:
        parser.error("--out goes with --scores; of a config, run.log_dir says where files go")
    from privacy import config as configuration
    from privacy import limits, pipeline

    config = configuration.load(args.cf or "configs/digits.yaml")
    if args.train_model is not None:
        pipeline.train_only(config, args.train_model)
        return 0
    comparisons = limits.parse(args.fail_if) if args.fail_if is not None else []
    if comparisons and args.stop_after not in ("audit", "report"):
        parser.error(f"--fail_if needs the stage audit, and --stop_after is {args.stop_after}")
    limits.check(
        comparisons, config.audit.fprs, pipeline.attack_names(config.audit.algorithm), config.audit.epsilon is not None
    )
    results, clock = pipeline.run(config, args.stop_after)
    show(results, clock, config.run.log_dir)
    return judge(comparisons, results)


def of_scores(args):
    """An audit from files alone; the exit code."""
    from pathlib import Path

    from kit import cli
    from privacy import limits, pipeline, scores

    settings = scores.load(args.scores)
    comparisons = limits.parse(args.fail_if) if args.fail_if is not None else []
    names = pipeline.attack_names(settings.attacks)
    limits.check(comparisons, settings.fprs, names, settings.epsilon is not None)
    clock = pipeline.Clock(None)
    out = Path(args.out or Path(args.scores) / "report")
    results, knows = scores.run(args.scores, out, settings, clock)
    can, missing = scores.KNOWS[knows]
    cli.show_rows([("can be said from", can), *([("more could with", missing)] if missing else [])], WIDTH)
    show(results, clock, out)
    if results is None and comparisons:
        from kit.errors import UserError

        raise UserError("--fail_if can't be judged from the target's scores alone", advice=f"add {missing}")
    return judge(comparisons, results)


def judge(comparisons, results):
    """Name the limits that are broken on stderr; the exit code."""
    import sys

    from privacy import limits

    if not comparisons:
        return 0
    lines, notes = limits.broken(comparisons, results)
    for line in [*notes, *lines]:
        print(line, file=sys.stderr)
    return LIMIT_BROKEN if lines else 0


def show(results, clock, folder):
    """Print every attack's rates over all targets, and where the rest is."""
    from kit import cli, tables

    if results:
        rates = [point["fpr"] for point in results["attacks"][0]["pooled"]["tpr_at_fpr"]]
        lines = [["attack", "AUC (95 % interval)", *(f"TPR@{100 * fpr:g}%FPR" for fpr in rates), "in all models"]]
        for attack in results["attacks"]:
            found = attack["pooled"]
            low, high = found["auc_clustered"]
            tprs = (f"{100 * point['tpr']:.2f} %" for point in found["tpr_at_fpr"])
            shown = min(found["tpr_at_fpr"], key=lambda point: abs(point["fpr"] - results["headline"]["fpr"]))
            same = shown["stability"]
            stable = f"{same['all']} of {same['any']}" if same["records"] else "-"
            lines.append([attack["title"], f"{found['auc']:.4f} ({low:.4f}-{high:.4f})", *tprs, stable])
        print("\n".join(tables.columns(lines, [WIDTH, 26, *[15] * len(rates), 14])))
        for warning in results["fairness"]["warnings"]:
            print(f"warning: {warning}")
    for name, reason in (results["skipped"] if results else {}).items():
        print(f"left out: {name} ({reason})")
    seconds = ", ".join(f"{name} {taken:.1f}" for name, taken in clock.seconds.items())
    cli.show_rows([("seconds", seconds), ("files", folder)], WIDTH)


if __name__ == "__main__":
    run_script(main, writes_to="run.log_dir of the YAML file")

"""Privacy Meter: how much does a training pipeline give away about the records that it trains on?

Example: python privacy-audit.py --cf configs/digits.yaml
Loads the data, trains target and reference models (or takes those that are there), asks every model about every
record, runs the membership inference attacks with each model as target in turn, and writes the report. All files lie
below the config's run.log_dir; the same command goes on where an interrupted one stopped. LAUNCHER=local|ray and JOBS=4
train several models at once. configs/README.md lists every field.
"""

from kit.errors import run_script

WIDTH = 30  # of an attack's name


def main():
    from kit import cli
    from privacy import STAGES

    parser = cli.Parser(__doc__)
    parser.add_argument("--cf", default="configs/digits.yaml", help="the YAML file (default configs/digits.yaml)")
    parser.add_argument(
        "--stop_after", choices=STAGES, default="report", help="the last stage to run (default report, all of them)"
    )
    parser.add_argument(
        "--train_model",
        type=cli.number(int, 0),
        metavar="ID",
        help="train this one model, if it is missing, and nothing else: for `python -m launch` (default: all)",
    )
    args = parser.parse_args()
    from privacy import config as configuration
    from privacy import pipeline

    config = configuration.load(args.cf)
    if args.train_model is not None:
        pipeline.train_only(config, args.train_model)
        return
    results, clock = pipeline.run(config, args.stop_after)
    show(results, clock, config.run.log_dir)


def show(results, clock, folder):
    """Print every attack's rates over all targets, and where the rest is."""
    from kit import cli, tables

    if results:
        rates = [point["fpr"] for point in results["attacks"][0]["pooled"]["tpr_at_fpr"]]
        lines = [["attack", "AUC (95 % interval)", *(f"TPR@{100 * fpr:g}%FPR" for fpr in rates)]]
        for attack in results["attacks"]:
            found = attack["pooled"]
            low, high = found["auc_interval"]
            tprs = (f"{100 * point['tpr']:.2f} %" for point in found["tpr_at_fpr"])
            lines.append([attack["title"], f"{found['auc']:.4f} ({low:.4f}-{high:.4f})", *tprs])
        print("\n".join(tables.columns(lines, [WIDTH, 26, *[15] * len(rates)])))
    for name, reason in (results["skipped"] if results else {}).items():
        print(f"left out: {name} ({reason})")
    seconds = ", ".join(f"{name} {taken:.1f}" for name, taken in clock.seconds.items())
    cli.show_rows([("seconds", seconds), ("files", folder)], WIDTH)


if __name__ == "__main__":
    run_script(main, writes_to="run.log_dir of the YAML file")

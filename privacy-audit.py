"""Privacy Meter: how much does a training pipeline give away about the records that it trains on?

Example: python privacy-audit.py --cf configs/digits.yaml
Loads the data, trains target and reference models (or takes those that are there), asks every model about every
record, runs the membership inference attacks with each model as target in turn, and writes the report. All files lie
below the config's run.log_dir; the same command goes on where an interrupted one stopped. LAUNCHER=local|ray and JOBS=4
train several models at once. configs/README.md lists every field.
"""

import argparse

from kit import cli
from kit.errors import run_script
from privacy import config as configuration
from privacy import pipeline


def main():
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cf", default="configs/digits.yaml", help="the YAML file (default configs/digits.yaml)")
    parser.add_argument("--stop_after", choices=pipeline.STAGES, default="report", help="the last stage to run")
    parser.add_argument(
        "--train_model",
        type=cli.number(int, 0),
        metavar="ID",
        help="train this one model, if it is missing, and nothing else: for launch.py",
    )
    args = parser.parse_args()
    config = configuration.load(args.cf)
    if args.train_model is not None:
        pipeline.train_only(config, args.train_model)
        return
    results, clock = pipeline.run(config, args.stop_after)
    show(results, clock, config.run.log_dir)


def show(results, clock, folder):
    """Print every attack's rates over all targets, and where the rest is."""
    if results:
        rates = [point["fpr"] for point in results["attacks"][0]["pooled"]["tpr_at_fpr"]]
        _line("attack", "AUC (95 % interval)", *(f"TPR@{100 * fpr:g}%FPR" for fpr in rates))
        for attack in results["attacks"]:
            found = attack["pooled"]
            low, high = found["auc_interval"]
            _line(
                attack["title"],
                f"{found['auc']:.4f} ({low:.4f}-{high:.4f})",
                *(f"{100 * point['tpr']:.2f} %" for point in found["tpr_at_fpr"]),
            )
    for name, reason in (results["skipped"] if results else {}).items():
        print(f"left out: {name} ({reason})")
    print(f"{'seconds':<30}" + ", ".join(f"{name} {seconds:.1f}" for name, seconds in clock.seconds.items()))
    print(f"{'files':<30}{folder}")


def _line(name, area, *rates):
    print(f"{name:<30}{area:<26}{''.join(f'{rate:<15}' for rate in rates)}".rstrip())


if __name__ == "__main__":
    run_script(main)

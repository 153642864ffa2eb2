"""What a run shows to people: the table that it prints last, and its plots.

Public: show (the table), draw (all plots of a run), draw_roc, draw_losses, draw_marks (the picture of the README).
"""

import torch

from kit.cli import show_rows
from kit.plots import MEMBER_COLOR, NON_MEMBER_COLOR, draw_shares, figure_of, percent, roc_points, save_figure
from utils import mark_images, noise_fields, outlier_features, threshold_at_fpr


def show(result, paths):
    """Print the short table of a finished run: verdict per user, then the rates, then where everything is."""
    audit, verdict, training = result["audit"][result["mode"]], result["verdict"], result["settings"]["training"]
    print(
        f"\n{training['dataset']}, {training['net_type']}, {training['train_size']} training images, "
        f"{training['marked_samples_per_user']} samples a user, {result['mode']}-based, {result['signal']}"
    )
    users = verdict["users"]
    shown = users if len(users) <= 12 else []
    if shown:
        print(
            f"{'user':<12}{'class':>6}  {'trained on':<11}{'mean loss':>10}{'exact p':>10}  verdict at "
            f"{percent(verdict['fpr'])} FPR (threshold {verdict['threshold']:.4g})"
        )
    for row in shown:
        print(
            f"{row['user']:<12}{row['class']:>6}  {'yes' if row['trained_on'] else 'no':<11}{row['mean_loss']:>10.4f}"
            f"{'-' if row['exact_p'] is None else format(row['exact_p'], '.2g'):>10}"
            f"  {'USED' if row['used'] else 'not used'}"
        )
    targets = sum(row["trained_on"] for row in users)
    rows = [
        ("users whose data were used: detected", f"{verdict['targets_detected']} of {targets}"),
        ("innocent control users: accused", f"{verdict['controls_detected']} of {len(users) - targets}"),
        (
            "FPR@100%TPR",
            f"{percent(audit['fpr_at_100_tpr'], audit['fpr_interval'])}, "
            f"{audit['false_positives']} of {audit['non_members']} non-members",
        ),
    ]
    rows += [
        (f"TPR@{100 * point['fpr']:g}%FPR", percent(point["tpr"], point["interval"])) for point in audit["tpr_at_fpr"]
    ]
    rows += [("AUC", f"{audit['auc']:.4f}"), *_calibrated_rows(result)]
    rows += [
        (f"accuracy, {name}", percent(result["accuracy"][name]))
        for name in ("test", "train", "marked")
        if result["accuracy"][name] is not None
    ]
    rows += [("seconds", ", ".join(f"{name} {value:.1f}" for name, value in result["seconds"].items()))]
    rows += [("result", paths.result)]
    rows += [("plots", path) for path in (paths.roc_plot, paths.loss_plot, paths.mark_plot) if path.exists()]
    show_rows(rows)


def _calibrated_rows(result):
    """What --calibrate adds to the table, on a line; nothing without it."""
    calibrated = result.get("calibrated")
    if not calibrated:
        return []
    found, plain = (calibrated[name][result["mode"]] for name in ("audit", "plain"))
    beside = "" if calibrated["same_non_members"] else f" (without: {percent(plain['fpr_at_100_tpr'])} of the same)"
    text = f"{percent(found['fpr_at_100_tpr'], found['fpr_interval'])}{beside}, AUC {found['auc']:.4f}, "
    return [("FPR@100%TPR, calibrated", f"{text}detected {calibrated['verdict']['targets_detected']}")]


def draw(experiment, answers, result, paths):
    """Draw the three plots of a run: ROC, losses (the paper's Fig. 5) and the marked images."""
    draw_roc(answers, result, paths.roc_plot)
    draw_losses(answers, paths.loss_plot)
    users, store = experiment.users, experiment.data.images
    shown = [(user, number) for user in range(min(len(users), 2)) for number in range(min(users.samples.shape[1], 4))]
    originals = torch.cat([store[users.samples[user, number : number + 1]] for user, number in shown])
    draw_marks(originals, users.key, *zip(*shown, strict=True), experiment.marking, paths.mark_plot)


def draw_roc(answers, result, path):
    """The ROC of an `audit.Audit`, set- and instance-based, in linear and logarithmic axes."""
    figure, axes = figure_of(1, 2, (10, 4.6))
    for kind, style in (("set", "-"), ("instance", "--")):
        member, other = (
            values.mean(axis=1) if kind == "set" else values.ravel()
            for values in (answers.losses("target"), answers.losses("non_member"))
        )
        fpr, log_fpr, tpr = roc_points(member, other)
        label = (
            f"{kind}-based: FPR@100%TPR {percent(result['audit'][kind]['fpr_at_100_tpr'])}, "
            f"AUC {result['audit'][kind]['auc']:.4f}"
        )
        for axis in axes[0]:
            axis.plot(
                log_fpr if axis is axes[0, 1] else fpr,
                tpr,
                style,
                color=MEMBER_COLOR if kind == "set" else NON_MEMBER_COLOR,
                label=label,
            )
    for axis, scale in zip(axes[0], ("linear", "log"), strict=True):
        axis.plot([1e-5, 1], [1e-5, 1], color="grey", linewidth=0.8, linestyle=":")
        axis.set(
            xscale=scale,
            yscale=scale,
            xlabel="false positive rate",
            ylabel="true positive rate",
            title=f"ROC, {scale} axes",
        )
        axis.grid(alpha=0.3)
    lowest = 0.4 / answers.losses("non_member").size
    axes[0, 1].set(xlim=(lowest, 1.3), ylim=(0.5 / max(2, answers.losses("target").size), 1.3))
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=9)
    save_figure(figure, path)


def draw_losses(answers, path):
    """Fig. 5: single samples in logit-scaled form on the left, users' average losses on the right."""
    figure, axes = figure_of(1, 2, (10, 4.2))
    groups = {
        name: (answers.signals["target"][signal], answers.signals["non_member"][signal])
        for name, signal in (("instance", "scaled_loss"), ("set", answers.signal))
    }
    panels = (
        (
            axes[0, 0],
            [-values.ravel() for values in groups["instance"]],
            "single samples",
            "logit-scaled confidence (low loss on the right)",
        ),
        (
            axes[0, 1],
            [values.mean(axis=1) for values in groups["set"]],
            "sets of the users",
            f"average {answers.signal.replace('_', ' ')} of a user",
        ),
    )
    for axis, (member, other), title, label in panels:
        draw_shares(axis, (other, member), title, label)
    axes[0, 1].axvline(
        threshold_at_fpr(answers.losses("non_member").mean(axis=1), answers.settings["verdict_fpr"]),
        color="black",
        linestyle="--",
        linewidth=1,
        label=f"threshold at {percent(answers.settings['verdict_fpr'])} FPR",
    )
    axes[0, 1].legend(fontsize=8)
    save_figure(figure, path)


def draw_marks(originals, key, users, numbers, marking, path):
    """A grid with a column for each image: original, outlier feature, noise, marked.

    originals: uint8 (N, 3, H, W); users, numbers: N whole numbers, as for `utils.mark_images`.
    """
    count, _, height, width = originals.shape
    grey = torch.full((count, 3, height, width), 128, dtype=torch.uint8)
    rows = [("original", originals)]
    if marking.img_blending_ratio < 1:
        outlier = outlier_features(key, users, height, width, marking.outlier_bank).expand(count, 3, height, width)
        rows.append(("outlier feature", outlier.round().to(torch.uint8)))
    if marking.noise_injection_type != "none" and marking.noise_norm > 0:
        noise = noise_fields(key, users, numbers, height, width, marking).expand(count, 3, height, width)
        # The budget stretched to the whole range: at its true strength it could hardly be seen.
        rows.append(("noise, stretched", (grey + noise * 127 / marking.noise_norm).clamp(0, 255).to(torch.uint8)))
    rows.append(("marked", mark_images(originals, key, users, numbers, marking)))
    figure, axes = figure_of(1, 1, (1.35 * count + 0.6, 1.4 * len(rows) + 0.2))
    # One picture in one pair of axes: with a pair for each cell it takes twice as long.
    gap = max(1, width // 12)
    cells = torch.nn.functional.pad(torch.stack([images for _, images in rows]), (0, gap, 0, gap), value=255)
    sheet = cells.permute(0, 3, 1, 4, 2).reshape(len(rows) * (height + gap), -1, 3)[:-gap, :-gap]
    axis = axes[0, 0]
    axis.imshow(sheet.numpy(), interpolation="nearest")
    axis.set_xticks([column * (width + gap) + width / 2 for column in range(count)], [f"user {user}" for user in users])
    middles = [line * (height + gap) + height / 2 for line in range(len(rows))]
    axis.set_yticks(middles, [name for name, _ in rows], rotation=90, verticalalignment="center")
    axis.tick_params(length=0, labelsize=9, top=False, labeltop=True, bottom=False, labelbottom=False)
    axis.spines[:].set_visible(False)
    save_figure(figure, path)

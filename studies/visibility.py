"""Visibility against power: how plain each kind of mark is, what is left of it on its way, and whom it lets find.

Example: python -m studies.visibility --data_root CIFAR10_FOLDER --out results/visibility-0.5
Each suspect is trained on the published photos of users of all kinds at once: blending ratio x noise norm, marks that
are hidden from eyes (studies/hiding.py), photos published unchanged, and three kinds whose published copies a web site
has changed before, of which the audit knows nothing. They are audited by the usual test, without and with a reference
on as many other images.

Visibility is that of marks on photographs of a few hundred pixels. CIEDE2000 is a difference of colours in units of
about one just noticeable difference; LPIPS would need weights that its package downloads, and CIEDE2000 needs none,
is a standard (ISO/CIE 11664-6) and is kept up by scikit-image. It compares pixel by pixel, and so overrates fine
patterns that eyes average.

Public: KINDS, TESTS, shown, survives, looks, audits, summary, draw, parser, SHOWN.
"""

import hashlib
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from PIL import Image
from skimage.color import deltaE_ciede2000, rgb2lab

import utils
from attacks import exact
from dataset.photos import PHOTOS, open_photo
from kit import files, plots
from kit.errors import run_script
from kit.names import MOST_VIEWS
from kit.progress import Progress
from kit.tables import markdown
from provenance.plan import VIEWS
from provenance.protect import quality, shrunk
from studies import answers, common, hiding, survival

ALPHA = 1e-3
TESTS = {"without a reference": (), "with a reference": (answers.GOOD,)}
SHOWN = ("astronaut", "coffee", "motorcycle", "rocket", "temple", "flower")  # photographs that people would publish
ON_ITS_WAY = {"half the size": "half", "JPEG 75": "JPEG 75", "10 % cropped": "crop"}


def _kind(ratio, norm, hide=None):
    noise = "perlin" if norm else "none"
    update = {"img_blending_ratio": ratio, "noise_injection_type": noise, "noise_norm": float(norm)}
    settings = common.SETTINGS.model_copy(update=update)
    return common.Kind(settings, hide, views=MOST_VIEWS if settings.unmarked else VIEWS)


def _after_the_web(images):
    return survival.changed(images, survival.web, 0)


KINDS = {
    "clear: 0.7, noise 8": _kind(0.7, 8),
    "0.7, no noise": _kind(0.7, 0),
    "0.8, noise 4": _kind(0.8, 4),
    "0.9, noise 4": _kind(0.9, 4),
    "faint: 0.95, noise 2": _kind(0.95, 2),
    "noise 8 alone": _kind(1.0, 8),
    "none": _kind(1.0, 0),
    "clear, in chroma alone": _kind(0.7, 8, hiding.chroma),
    "clear, just noticeable": _kind(0.7, 8, hiding.just_noticeable),
    "clear, in texture": _kind(0.7, 8, hiding.textured),
    "noise 16 alone, just noticeable": _kind(1.0, 16, hiding.just_noticeable),
    "noise 8 alone, blue and yellow": _kind(1.0, 8, hiding.blue_yellow),
}
KINDS |= {
    f"{name}, published through the web": replace(KINDS[name], passage=_after_the_web)
    for name in ("clear: 0.7, noise 8", "faint: 0.95, noise 2", "none")
}


def shown(kind, original, key):
    """How plain one mark is: {"psnr" in dB, "ssim", "ciede2000" (mean over the pixels), "ciede2000_95" (95 % of them
    are below)}; psnr is None where nothing changed. original: uint8 (3, H, W); what the web does is left out."""
    marked = kind.marked(original[None], key, np.zeros(1, dtype=np.int64))[0]
    pair = [image.permute(1, 2, 0).contiguous().numpy() for image in (original, marked)]
    psnr, ssim = quality(*pair)
    apart = deltaE_ciede2000(*map(rgb2lab, pair))
    return {"psnr": psnr, "ssim": ssim, "ciede2000": apart.mean(), "ciede2000_95": np.quantile(apart, 0.95)}


def survives(kind, original, key, change, seed):
    """What is left of one mark in its place after a change of the photo: the correlation of what marking changed with
    what it changed after both photos, marked and not, went that way. None where there is no mark (left)."""
    both = torch.stack([original, kind.marked(original[None], key, np.zeros(1, dtype=np.int64))[0]])
    # One by one, so that what is random in a change is the same for both.
    later = torch.cat([survival.changed(image[None], change, seed) for image in both])
    before, after = ((pair[1].double() - pair[0].double()).flatten().numpy() for pair in (both, later))
    return float(np.corrcoef(before, after)[0, 1]) if before.std() and after.std() else None


def looks(kinds, side, marks):
    """{kind: means of `shown` and `survives` over photographs with the shorter side `side` and `marks` keys each}."""
    photos = {
        photo.name: shrunk(open_photo(photo), side, Image.Resampling.BILINEAR)
        for photo in PHOTOS
        if photo.name in SHOWN
    }
    found, known = {}, {}
    for name, kind in Progress(list(kinds.items()), "looking at marks"):
        plain = replace(kind, passage=None)
        if plain not in known:
            rows = []
            for (title, photo), mark in ((item, mark) for item in photos.items() for mark in range(marks)):
                key = utils.derive_key("studies", "visibility", title, mark)
                original = torch.from_numpy(np.array(photo)).permute(2, 0, 1).contiguous()
                left = {
                    short: survives(plain, original, key, survival.CHANGES[change], mark)
                    for change, short in ON_ITS_WAY.items()
                }
                rows.append({**shown(plain, original, key), **left})
            table = pd.DataFrame(rows).astype(float)
            known[plain] = {
                column: None if values.isna().all() else float(values.mean()) for column, values in table.items()
            }
        found[name] = known[plain]
    return found


def audits(args, data, device):
    """One row for each user and test, and one for each model."""
    chosen = {name: KINDS[name] for name in args.kinds}
    tag = f"visibility-{_digest(args)}-"
    users, models = [], []
    for seed in args.seeds:
        path = answers.answers_of(args, data, device, seed, chosen, tag)
        with np.load(path) as stored:
            accuracies = {name: float(stored[name]) for name in ("train_accuracy", "test_accuracy")}
        models.append({"seed": seed, **{name: None if np.isnan(one) else one for name, one in accuracies.items()}})
        for user in answers.users_of(path):
            kind = chosen[user.kind]
            selections = 99_999 if kind.settings.unmarked else exact.SELECTIONS
            for test, references in TESTS.items():
                p = answers.audit_p(user, kind.views, references, selections)
                users.append({"seed": seed, "user": user.number, "kind": user.kind, "test": test, "p": p})
        print(f"seed {seed}: {len(users) // len(TESTS)} users", flush=True)
    return pd.DataFrame(users), models


def _digest(args):
    """What decides the users of a model beside what is in its files' names, so that kept answers are theirs."""
    ways = [
        [name, kind.settings.model_dump(), *(way and way.__name__ for way in (kind.hide, kind.passage)), kind.views]
        for name, kind in ((name, KINDS[name]) for name in args.kinds)
    ]
    return hashlib.sha256(repr([ways, args.users, args.photos]).encode()).hexdigest()[:8]


def summary(table, seen):
    """(markdown, {kind: {test: {"found": rate, "p": geometric mean}}}). table: of `audits`; seen: of `looks`."""
    found, body = {}, []
    for kind, part in table.groupby("kind", sort=False):
        found[kind] = {
            test: {
                "found": common.rate((p <= ALPHA).sum(), len(p)),
                "p": float(np.exp(np.log(p).mean())),
            }
            for test, p in part.groupby("test", sort=False).p
        }
        look, cells = seen[kind], []
        for one in found[kind].values():
            cells += [plots.percent(one["found"]["share"], one["found"]["interval"]), f"{one['p']:.6f}"]
        body.append(
            [
                kind,
                _said(look["psnr"], "{:.1f}"),
                _said(look["ssim"], "{:.3f}"),
                f"{look['ciede2000']:.2f} ({look['ciede2000_95']:.2f})",
                ", ".join(_said(look[short], "{:.2f}") for short in ON_ITS_WAY.values()),
                *cells,
            ]
        )
    head = [
        "mark",
        "PSNR, dB",
        "SSIM",
        "CIEDE2000, mean (95 % of pixels below)",
        f"correlation left: {', '.join(ON_ITS_WAY.values())}",
    ]
    for test in table.test.unique():
        head += [f"found at alpha {ALPHA:g}, {test}", f"geometric mean of p, {test}"]
    return markdown(head, body), found


def _said(value, form):
    return "-" if value is None else form.format(value)


GAP = 0.03  # of an axis, between points that would lie on one another


def _apart(values, span):
    """Places for points, in the order of `values`, that are at least GAP of the span from each other."""
    places, last = np.array(values, dtype=np.float64), -np.inf
    for index in np.argsort(places, kind="stable"):
        places[index] = last = max(places[index], last + GAP * span)
    return places


def draw(found, seen, path):
    """Share found (rows: without and with a reference) against visibility (columns); marks have the numbers of the
    legend; what would lie on one another is moved to the right. found: of `summary`; seen: of `looks`."""
    tests = [test for test in TESTS if test in next(iter(found.values()))]
    figure, axes = plots.figure_of(len(tests), 2, (13, 4.5 * len(tests)))
    ways = {"ciede2000": "CIEDE2000, mean over the pixels (1: just noticeable)", "ssim": "1 - SSIM"}
    for row, test in enumerate(tests):
        for column, (name, label) in enumerate(ways.items()):
            axis = axes[row, column]
            plain = [1 - seen[kind][name] if name == "ssim" else seen[kind][name] for kind in found]
            places = _apart(plain, max(plain) or 1)
            for place, (index, kind) in zip(places, enumerate(found, 1), strict=True):
                rate = found[kind][test]["found"]
                low, high = rate["interval"]
                color, marker = _style(kind)
                axis.errorbar(
                    [place],
                    [rate["share"]],
                    [[rate["share"] - low], [high - rate["share"]]],
                    fmt=marker,
                    color=color,
                    capsize=2,
                    label=f"{index}  {kind}",
                )
                at = {"xytext": (0, 2), "textcoords": "offset points", "ha": "center", "va": "bottom", "fontsize": 8}
                axis.annotate(str(index), (place, high), color=color, **at)
            axis.set(
                title=test,
                xlabel=f"{label}; to the right: plainer",
                ylabel=f"share found at alpha {ALPHA:g}",
                ylim=(-0.03, 1.1),
            )
            axis.grid(alpha=0.3)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    plots.save_figure(figure, path)


def _style(kind):
    """(colour, marker): how a mark is hidden, or that its copies went through the web."""
    if KINDS[kind].passage:
        return "#7f7f7f", "s"
    return ("#d95f02", "^") if KINDS[kind].hide else ("#1f77b4", "o")


def parser():
    """The flags."""
    flags = common.parser(
        __doc__,
        seeds=[401, 402, 403, 404, 405],
        users=5,
        photos=50,
        train_size=5000,
        epoch=100,
        net_type="smallnet",
        side=320,
        marks=2,
    )
    flags.add_argument("--kinds", nargs="+", choices=tuple(KINDS), default=list(KINDS), help="of marks in each model")
    # Users and images on which the statistic was not chosen, and its references.
    flags.set_defaults(half="claims", references=[answers.GOOD])
    return flags


def main():
    args = parser().parse_args()
    data, device = common.load(args)
    table, models = audits(args, data, device)
    seen = looks({name: KINDS[name] for name in args.kinds}, args.side, args.marks)
    text, found = summary(table, seen)
    accuracy = np.mean([model["train_accuracy"] for model in models])
    text = (
        f"{len(models)} {args.net_type} models of {args.train_size:,} images, {args.epoch} epochs (training accuracy "
        f"{accuracy:.1%}); {args.users} users of each kind in each, {args.photos // 2} published + {args.photos // 2} "
        f"held out = {args.photos / 2 / args.train_size:.2%} of the images\n\n{text}"
    )
    print(text)
    with files.atomic_path(f"{args.out}/visibility.md") as path:
        path.write_text(text)
    draw(found, seen, f"{args.out}/visibility.png")
    names = ("kinds", "seeds", "users", "photos", "train_size", "epoch", "net_type", "side", "marks")
    common.write_study(
        args.out,
        {
            "settings": {name: getattr(args, name) for name in names},
            "models": models,
            "visibility": seen,
            "found": found,
            "users": table.to_dict("records"),
        },
        device,
    )


if __name__ == "__main__":
    run_script(main)

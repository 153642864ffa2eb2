"""What is best asked of a fine-tuned diffusion model: which signal, at which timesteps, in how many draws?

Example: python -m studies.generative_choice --data_root CIFAR10_FOLDER --out results/generative-choice
On users of its own, never on those of studies/generative.py, whose base is used: their published halves are fine-tuned
on, in full and as a LoRA, one user a model. All of a user's pictures are then asked about at every timestep and draw by
every signal of suspects/denoising.py. The constants there were chosen from this table.

Public: CANDIDATES, signals_of, main.
"""

from pathlib import Path

import numpy as np
import torch

from kit import files, plots
from kit.errors import run_script
from kit.progress import Progress
from kit.tables import markdown
from studies import common, generative
from studies.generative_models import FAMILIES, fine_tune
from suspects import adapters, denoising, pipelines

FRACTIONS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4)
NOISES = 2
SEED = b"studies/generative_choice.py"


def _mean(errors, places, noises=NOISES):
    """(model, base) of the mean error at some places of FRACTIONS. errors: (2, ..., fractions, noises)."""
    return errors[..., places, :noises].mean(axis=(-1, -2))


def _relative(errors):
    """Each timestep's errors in units of the base's mean there."""
    unit = errors[1].mean(axis=tuple(range(errors.ndim - 3)) + (-1,), keepdims=True)
    return errors / unit


def _candidates():
    found = {
        f"error at {fraction:g}, {count} draw{'s' * (count > 1)}": (
            "error",
            lambda one, place=place, count=count: _mean(one, [place], count),
        )
        for place, fraction in enumerate(FRACTIONS)
        for count in (1, NOISES)
    }
    sets = {"0.005 to 0.05": [0, 1, 2, 3], "0.02 to 0.2": [2, 3, 4, 5], "0.05 to 0.4": [3, 4, 5, 6], "all": range(7)}
    for name, places in sets.items():
        places = list(places)
        found[f"error, {name}, 2 draws each"] = ("error", lambda one, places=places: _mean(one, places, 2))
        found[f"error, {name}, 2 draws each, in units of the base's"] = (
            "error",
            lambda one, places=places: _mean(_relative(one), places, 2),
        )
        found[f"log of the error, {name}, 2 draws each"] = (
            "error",
            lambda one, places=places: _mean(np.log(one), places, 2),
        )
    for signal in ("sima", "pia"):
        for place, fraction in enumerate(FRACTIONS):
            found[f"{signal} at {fraction:g}"] = (signal, lambda one, place=place: _mean(one, [place], 1))
    found["secmi"] = ("secmi", lambda one: _mean(one, [0], 1))
    return found


CANDIDATES = _candidates()  # {name: (signal, function (2, n, fractions, noises) -> (2, n))}


def signals_of(model, pictures):
    """{signal: float64 (n, fractions, noises)} of one Pipeline, as it stands, for uint8 pictures (n, 3, h, w)."""
    clean = pictures.to(model.network.device).float() / 127.5 - 1
    draws = denoising.draws_of(SEED, tuple(clean.shape[1:]), FRACTIONS, NOISES)
    with torch.inference_mode():
        errors = [denoising.scores_of(model, clean, {}, [draw]) for draw in draws]
        found = {"error": np.stack(errors, axis=1).reshape(len(clean), len(FRACTIONS), NOISES)}
        for signal in ("sima", "pia"):
            one = [denoising.scores_of(model, clean, {}, [draw], signal) for draw in draws[::NOISES]]
            found[signal] = np.stack(one, axis=1)[:, :, None]
        found["secmi"] = denoising.scores_of(model, clean, {}, draws, "secmi")[:, None, None]
    return found


def asked(path, base, pictures, device):
    """{signal: float64 (2, n, fractions, noises)}: of a fine-tuned model and of its base."""
    file = adapters.adapter_file(path)
    model = pipelines.read_pipeline(base if file else path, device)
    if file is None:
        both = [signals_of(one, pictures) for one in (model, pipelines.read_pipeline(base, device))]
    else:
        adapters.attach(adapters.read_adapter(file), model)
        both = []
        for on in (True, False):
            with adapters.switched(model, on):
                both.append(signals_of(model, pictures))
    return {name: np.stack([one[name] for one in both]) for name in both[0]}


def answers_of(args, data, tuning, work, device):
    """({passes: [asked(...) of each user]}, people)."""
    taken = generative.base_rows(data, args.base_size)
    people = generative.people_of(data, args.users, args.photos, "choice", taken)
    found = {number: [] for number in args.passes}
    for user, person in enumerate(Progress(people, tuning)):
        folder = work / "choice" / tuning / f"{user}"
        pictures, rows = generative.published(data, [person], "none")
        captions, family = ("",) * len(rows), FAMILIES[args.family]
        how = (family.TUNINGS[tuning], args.passes, user, device)
        tuned = fine_tune(family, work / "base", folder, pictures, captions, *how)
        for number, path in tuned.items():
            kept = folder / f"signals-{number}.npz"
            if not kept.exists():
                shown = data.images[torch.from_numpy(person.rows)]
                files.write_arrays(kept, **asked(path, work / "base", shown, device))
            found[number].append(files.read_arrays(kept))
    return found, people


def geometric_mean_p(answers, selections, candidate, less):
    """Of one candidate for some users; selections: of each one; less: whether the base's is taken off."""
    signal, combine = CANDIDATES[candidate]
    found = []
    for one, drawn in zip(answers, selections, strict=True):
        model, base = combine(one[signal].astype(np.float64))
        found.append(generative.p_of((model - base if less else model)[:, None], drawn))
    return float(np.exp(np.log(found).mean()))


def main():
    """Fine-tune, ask, compare."""
    parser = common.parser(__doc__, users=6, photos=50, passes=[30, 100], base_size=6000, base_epochs=10, seed=1)
    args = parser.parse_args()
    data, device = common.load(args)
    work, rows = Path(args.work), []
    args.family = "unet"
    generative.pre_train(args, data, work, device)
    answers = {tuning: answers_of(args, data, tuning, work, device) for tuning in FAMILIES["unet"].TUNINGS}
    people = next(iter(answers.values()))[1]
    selections = [generative.selections_of(person.key, args.photos, 99_999) for person in people]
    for candidate in Progress(list(CANDIDATES), "comparing"):
        row = {"candidate": candidate}
        for tuning, (found, _) in answers.items():
            for number in args.passes:
                for less, what in ((True, "less the base"), (False, "alone")):
                    value = geometric_mean_p(found[number], selections, candidate, less)
                    row[f"{tuning}, {number} passes, {what}"] = value
        less = [np.log(value) for name, value in row.items() if name.endswith("less the base")]
        rows.append({**row, "less the base": float(np.exp(np.mean(less)))})
    rows.sort(key=lambda row: row["less the base"])
    out = Path(args.out)
    titles = [name for name in rows[0] if name != "candidate"]
    text = markdown(
        ["geometric mean of p", *titles],
        [[row["candidate"], *(f"{row[name]:.2g}" for name in titles)] for row in rows],
    )
    settings = {name: value for name, value in vars(args).items() if name not in ("work", "out", "data_root")}
    common.write_study(out, {"settings": settings, "rows": rows}, device)
    with files.atomic_path(out / "choice.md") as path:
        path.write_text(f"{args.users} users, one a model\n\n{text}", encoding="utf-8")
    draw(rows[:12], out / "choice.png")
    print(text)


def draw(rows, path):
    """The best candidates, by the geometric mean of p."""
    figure, axes = plots.figure_of(1, 1, (8, 5))
    axis = axes[0, 0]
    axis.barh([row["candidate"] for row in rows][::-1], [-np.log10(row["less the base"]) for row in rows][::-1])
    axis.set(xlabel="-log10 of the geometric mean of p, less the base")
    axis.grid(alpha=0.3)
    plots.save_figure(figure, path)


if __name__ == "__main__":
    run_script(main)

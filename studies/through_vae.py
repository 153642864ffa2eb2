"""What is left of a mark behind the autoencoder of a latent diffusion model, and on the way there?

Example: python -m studies.through_vae --out results/through-vae
Trainers scale a picture of 512 to 1,024 px to a bucket of their own, cut off what does not fit, and train on latents: 8
times smaller, with 4 channels (Stable Diffusion 1, 2, XL) or 16 (3, Flux). No published autoencoder can be had here, so
that small ones of the same shape (`AutoencoderKL`, 8 times smaller) are trained on crops of photographs, and asked
about others. How much better than they a published one is, is seen from how well each gives unmarked photos back.

For each kind of mark, on photographs marked at full size: the correlation of what the mark changed with what is changed
after that way, in the pixels that the decoder gives back; and how far the latents move, in units of their standard
deviation over the photo, which is what a trained network gets to see.

Public: BUCKETS, KINDS, bucketed, marked_photos, moved, summary.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

import utils
from dataset.photos import PHOTOS, open_photo
from kit import files, plots
from kit.cli import Parser, number
from kit.errors import run_script
from kit.progress import Progress
from kit.tables import markdown
from provenance.protect import shrunk
from studies import common
from studies.autoencoder import CROP, make_autoencoder
from studies.visibility import SHOWN
from suspects.pipelines import library
from suspects.suspect import Preprocessing

KINDS = {"clear": common.Kind(common.SETTINGS), "faint": common.Kind(common.FAINT)}
BUCKETS = {"as it is": None, "cut to a bucket of 7:9": (576, 448), "scaled to 3/4, cut to a square": (384, 384)}


def bucketed(photo, bucket):
    """A photo, uint8 (3, H, W), scaled to cover a bucket (height, width) and cut to it, as trainers do; None: its own
    size, cut to multiples of 8."""
    height, width = photo.shape[1:]
    if bucket is None:
        height, width = height // 8 * 8, width // 8 * 8
        return photo[:, :height, :width]
    fit = Preprocessing(bucket, interpolation="bicubic").fit
    return torch.from_numpy(fit(photo.permute(1, 2, 0).contiguous().numpy()))


def marked_photos(photo, kind, key, bucket):
    """(plain, marked) uint8 (2, 3, h, w): both marked at full size, and then brought to a bucket."""
    both = photo, kind.marked(photo[None], key, np.zeros(1, dtype=np.int64))[0]
    return torch.stack([bucketed(one, bucket) for one in both])


def moved(model, pair):
    """What an autoencoder does to a (plain, marked) pair: {"pixels": correlation of the mark with what is given back
    of it, "latents": RMS of what the mark moves, in standard deviations, "psnr": of the plain photo, dB}."""
    clean = pair.float() / 127.5 - 1
    with torch.no_grad():
        latents = model.encode(clean).latent_dist.mode()
        given = model.decode(latents).sample.clamp(-1, 1)
    before, after = ((one[1] - one[0]).double().flatten().numpy() for one in (clean, given))
    error = float((given[0] - clean[0]).square().mean()) / 4  # of pictures from 0 to 1
    spread = latents[0].flatten(1).std(dim=1)
    return {
        "pixels": float(np.corrcoef(before, after)[0, 1]),
        "latents": float(((latents[1] - latents[0]).flatten(1).pow(2).mean(1).sqrt() / spread).mean()),
        "psnr": -10 * float(np.log10(max(error, 1e-12))),
    }


def summary(rows):
    """Means over photos and keys: one row for each (channels, mark, bucket)."""
    table = pd.DataFrame(rows)
    return table.groupby(["channels", "mark", "bucket"], sort=False).mean(numeric_only=True).reset_index()


def _photo(photo, side):
    return torch.from_numpy(np.array(shrunk(open_photo(photo), side, Image.Resampling.LANCZOS))).permute(2, 0, 1)


def kept(args, channels, photos):
    """The autoencoder of these settings, trained on photos unless it is there."""
    folder = Path(args.work) / f"autoencoder-{channels}-{args.steps}-{args.batch}-{args.seed}"
    if not folder.exists():
        with common.whole(folder) as path:
            make_autoencoder(channels, photos, args.steps, args.batch, args.seed).save_pretrained(path)
    model = library("diffusers").AutoencoderKL.from_pretrained(folder, use_safetensors=True)
    return model.eval().requires_grad_(False)


def main():
    """Train autoencoders on some photographs, send marked others through."""
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--channels", nargs="+", type=number(int, 1), default=[4, 16], help="of the latents (default 4 16)")
    add("--steps", type=number(int, 1), default=1500, help="of training (default 1500)")
    add("--batch", type=number(int, 1), default=6, help="crops a step (default 6)")
    add("--side", type=number(int, CROP), default=512, help="shorter side of the photographs, px (default 512)")
    add("--keys", type=number(int, 1), default=2, help="marks a photograph (default 2)")
    add("--seed", type=number(int, 0), default=1)
    add("--work", default="runs/studies", help="where autoencoders are kept between calls (default runs/studies)")
    add("--out", required=True, help="folder for result.json and the table")
    args = parser.parse_args()
    seen = [_photo(photo, args.side) for photo in PHOTOS if photo.name not in SHOWN]
    others = {photo.name: _photo(photo, args.side) for photo in PHOTOS if photo.name in SHOWN}
    rows = []
    for channels in args.channels:
        model = kept(args, channels, seen)
        for mark, kind in Progress(list(KINDS.items()), f"{channels} channels"):
            for (name, photo), (way, bucket) in ((one, two) for one in others.items() for two in BUCKETS.items()):
                for place in range(args.keys):
                    pair = marked_photos(photo, kind, utils.derive_key("studies", "vae", name, place), bucket)
                    rows.append(
                        {"channels": channels, "mark": mark, "bucket": way, "photo": name, **moved(model, pair)}
                    )
    conclude(args, rows)


def conclude(args, rows):
    """result.json, a table and a plot."""
    out, found = Path(args.out), summary(rows)
    text = markdown(
        [
            "channels",
            "mark",
            "before the autoencoder",
            "correlation left in pixels",
            "latents moved, std",
            "unmarked, PSNR in dB",
        ],
        [
            [row.channels, row.mark, row.bucket, f"{row.pixels:.2f}", f"{row.latents:.2f}", f"{row.psnr:.1f}"]
            for row in found.itertuples()
        ],
    )
    settings = {name: value for name, value in vars(args).items() if name not in ("work", "out")}
    rounded = found.round(4).to_dict("records")
    common.write_study(out, {"settings": settings, "means": rounded, "rows": rows}, torch.device("cpu"))
    with files.atomic_path(out / "through-vae.md") as path:
        path.write_text(text, encoding="utf-8")
    figure, axes = plots.figure_of(1, 1, (7, 4))
    for (channels, mark), part in found.groupby(["channels", "mark"], sort=False):
        axes[0, 0].plot(part.bucket, part.pixels, "o-", label=f"{mark}, {channels} channels")
    axes[0, 0].set(ylabel="correlation left of the mark", ylim=(0, 1))
    axes[0, 0].legend(fontsize=8)
    axes[0, 0].grid(alpha=0.3)
    plots.save_figure(figure, out / "through-vae.png")
    print(text)


if __name__ == "__main__":
    run_script(main)

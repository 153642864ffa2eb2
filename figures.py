"""Draw the pictures of the README with the project's own code.

Example: python figures.py --out results/marking.png
Photographs out of the installed packages are marked at 224 px as five users would mark them.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

import arguments
import report
import runs
from dataset import photos
from utils import Marking, derive_key

SHOWN = ("astronaut", "coffee", "motorcycle", "temple", "flower")
SIZE = 224


def main():
    parser = arguments.Parser(description=__doc__, formatter_class=arguments.argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="results/marking.png", help="the picture to write")
    parser.add_argument("--seed", type=int, default=1, help="decides the users' keys")
    args = parser.parse_args()
    chosen = [photo for photo in photos.PHOTOS if photo.name in SHOWN]
    squares = [ImageOps.fit(photos.open_photo(photo), (SIZE, SIZE), Image.Resampling.BICUBIC) for photo in chosen]
    originals = torch.stack([torch.from_numpy(np.array(square)).permute(2, 0, 1) for square in squares])
    users = range(len(chosen))
    report.draw_marks(originals, derive_key(args.seed, "picture"), users, users, Marking(), Path(args.out))
    print(args.out)


if __name__ == "__main__":
    runs.run_script(main)

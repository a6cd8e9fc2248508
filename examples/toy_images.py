"""Write a folder of small labelled pictures, laid out as `offramp-train` reads one: discs, squares, crosses and stripes.

    python examples/toy_images.py images [--train 400] [--test 120] [--size 32]

About half of them are nearly drowned in noise, so that some are easy and some are hard. They stand in for your own pictures.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

from offramp_training.data import synthetic_images


def write_split(folder: Path, count: int, size: int, seed: int) -> None:
    """Write `count` pictures of `size`×`size` pixels as <folder>/<class>/<number>.png."""
    drawn = synthetic_images(count, size, seed)
    for name in drawn.classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number, (picture_CHW, label) in enumerate(zip(drawn.images_NCHW, drawn.labels_N.tolist(), strict=True)):
        Image.fromarray(picture_CHW.permute(1, 2, 0).numpy()).save(folder / drawn.classes[label] / f"{number:04}.png")


def main() -> None:
    """Read the command line and write both splits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where train/ and test/ go")
    parser.add_argument("--train", type=int, default=400, help="pictures to train on")
    parser.add_argument("--test", type=int, default=120, help="pictures to measure on")
    parser.add_argument("--size", type=int, default=32, help="pixels on a side")
    arguments = parser.parse_args()
    write_split(arguments.folder / "train", arguments.train, arguments.size, seed=1)
    write_split(arguments.folder / "test", arguments.test, arguments.size, seed=2)
    print(f"{arguments.train} + {arguments.test} pictures in {arguments.folder}")


if __name__ == "__main__":
    main()

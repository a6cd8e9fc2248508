"""Classify every frame of a film into a table, and draw the answers into a copy of it.

    python examples/video_file.py film.mp4 [--csv frames.csv] [--video annotated.mp4] [--lambda 0.1] [--address localhost:50051]

The table has a line a frame: time, label, probability, exit, and compute over the full network's. It needs the extra `video`.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from offramp_client import Classification, Client, Frame

COLUMNS = ("frame", "seconds", "label", "probability", "exit", "compute", "error")


class Film:
    """A film's frames on their way: iterate over it to send them, take each back when it is answered."""

    def __init__(self, path: Path) -> None:
        self._capture = cv2.VideoCapture(str(path))
        if not self._capture.isOpened():
            raise SystemExit(f"{path}: OpenCV can't open it")
        self._sent: dict[int, Any] = {}
        self.fps = self._capture.get(cv2.CAP_PROP_FPS) or 30.0

    def __iter__(self) -> Iterator[Frame]:
        number = 0
        while (taken := self._capture.read())[0]:
            self._sent[number] = taken[1]
            image = np.asarray(cv2.cvtColor(taken[1], cv2.COLOR_BGR2RGB), np.uint8)
            yield Frame(image, number, timestamp_us=round(number / self.fps * 1e6))
            number += 1

    def take_back(self, number: int) -> Any:
        """The frame as OpenCV read it, (H, W, 3) BGR."""
        return self._sent.pop(number)


def draw(image_bgr: Any, seen: Classification) -> None:
    """Write the answer into the picture, green for the first exit and redder the deeper."""
    text = f"{seen.name} {seen.probability:.2f}  exit {seen.exit}  {seen.cost_ratio:.2f}"
    colour = (0, round(255 * (1 - min(seen.cost_ratio, 1))), round(255 * min(seen.cost_ratio, 1)))
    cv2.putText(image_bgr, text, (8, image_bgr.shape[0] - 10), cv2.FONT_HERSHEY_SIMPLEX, 0.5, colour, 1, cv2.LINE_AA)


async def main() -> None:
    """Read the command line, and work through the film as fast as the server answers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("film", type=Path, help="a film that OpenCV reads")
    parser.add_argument("--csv", type=Path, help="where the table goes; stdout where not given")
    parser.add_argument("--video", type=Path, help="where the annotated copy goes: an .mp4 file")
    parser.add_argument("--lambda", dest="lambda_", type=float, help="price of compute; the model's own where not given")
    parser.add_argument("--address", default="localhost:50051", help="host:port of the server")
    arguments = parser.parse_args()
    film, copy = Film(arguments.film), None
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(Client(arguments.address))
        out = stack.enter_context(arguments.csv.open("w", newline="")) if arguments.csv else sys.stdout
        table = csv.writer(out)
        table.writerow(COLUMNS)
        async for result in client.stream(film, lambda_=arguments.lambda_):  # in the order of the frames
            image, row = film.take_back(result.frame_id), [result.frame_id, f"{result.timestamp_us / 1e6:.3f}"]
            if result.classification is not None:
                seen = result.classification
                table.writerow([*row, seen.name, f"{seen.probability:.4f}", seen.exit, f"{seen.cost_ratio:.4f}", ""])
                draw(image, seen)
            elif result.error is not None:
                table.writerow([*row, "", "", "", "", result.error.message])
            if arguments.video and copy is None:
                size = (image.shape[1], image.shape[0])
                copy = cv2.VideoWriter(str(arguments.video), cv2.VideoWriter.fourcc(*"mp4v"), film.fps, size)
                stack.callback(copy.release)
            if copy is not None:
                copy.write(image)


if __name__ == "__main__":
    asyncio.run(main())

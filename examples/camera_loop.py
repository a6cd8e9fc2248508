"""Classify a camera live: frames that come while the server is busy are dropped, and the newest one goes next.

    python examples/camera_loop.py [0 | film.mp4] [--address localhost:50051] [--lambda 0.1]

The source is a camera's number, or a film, which is played at its own rate whether or not the server keeps up. It needs the extra
`video`.
"""

from __future__ import annotations

import argparse
import asyncio
import threading
import time

import cv2
import numpy as np

from offramp_client import Client, Frame


class Camera:
    """Captures in a thread of its own and keeps the newest frame alone; iterate over it for what is newest each time."""

    def __init__(self, source: str) -> None:
        self.captured = 0
        self._capture = cv2.VideoCapture(int(source) if source.isdecimal() else source)
        if not self._capture.isOpened():
            raise SystemExit(f"{source}: OpenCV can't open it")
        self._period_s = 0.0 if source.isdecimal() else 1 / (self._capture.get(cv2.CAP_PROP_FPS) or 30)
        self._newest: Frame | None = None
        self._ended = False
        self._changed = threading.Condition()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        due = time.monotonic()
        while not self._ended:
            taken, image_bgr = self._capture.read()  # a camera blocks here until its next frame
            with self._changed:
                if taken:
                    image = np.asarray(cv2.cvtColor(image_bgr, cv2.COLOR_BGR2RGB), np.uint8)
                    self._newest = Frame(image, frame_id=self.captured, timestamp_us=time.time_ns() // 1000)
                    self.captured += 1
                self._ended = not taken
                self._changed.notify()
            due += self._period_s
            time.sleep(max(0.0, due - time.monotonic()))
        self._capture.release()

    def __iter__(self) -> Camera:
        return self

    def __next__(self) -> Frame:
        with self._changed:
            self._changed.wait_for(lambda: self._newest is not None or self._ended)
            newest, self._newest = self._newest, None
        if newest is None:
            raise StopIteration
        return newest


async def main() -> None:
    """Read the command line and classify until the camera ends, or Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", default="0", help="number of a camera, or a film")
    parser.add_argument("--address", default="localhost:50051", help="host:port of the server")
    parser.add_argument("--lambda", dest="lambda_", type=float, help="price of compute; the model's own where not given")
    arguments = parser.parse_args()
    camera, answered, newest_id = Camera(arguments.source), 0, -1
    async with Client(arguments.address) as client:
        # A window of two keeps one frame on the way while another is computed; a longer one would send frames that then grow old.
        async for result in client.stream(camera, lambda_=arguments.lambda_, window=2):
            answered, newest_id = answered + 1, result.frame_id
            if result.error is not None:
                print(f"{result.frame_id:>6}  {result.error.message}")
                continue
            seen = result.unwrap()
            age_ms = (time.time_ns() // 1000 - result.timestamp_us) / 1000
            print(
                f"{result.frame_id:>6}  {seen.name:<12} {seen.probability:.2f}  exit {seen.exit}  {age_ms:.0f} ms after capture"
            )
    print(
        f"{camera.captured} captured, {answered} answered, {camera.captured - answered} dropped; the last was frame {newest_id}"
    )


if __name__ == "__main__":
    asyncio.run(main())

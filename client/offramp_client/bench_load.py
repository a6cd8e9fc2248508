"""Puts load on a server and measures, in a window of time, what comes back: closed loop or open, one frame a message or more.

It knows no wire: a `Lane` does, `bench_lane.StreamLane` for Offramp, so that other servers can be put under the same load.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from offramp_client.bench_types import Answer, Lane, Load, Measurement, OpenLane, Sent
from offramp_client.errors import error_for


async def run_load(load: Load, open_lane: OpenLane, images: int, server_cpu_s: Callable[[], float] = lambda: 0.0) -> Measurement:
    """Open the lanes, send for `warm_up_s` and then for `seconds`, and return what came back in the latter.

    Args:
        load: how much.
        open_lane: opens one conversation; what it raises is raised here.
        images: number of different images, which are sent in turn.
        server_cpu_s: CPU seconds that the server has used so far, where that is known; read at both ends of the window.

    Raises:
        RequestError: every lane was lost and nothing was answered.
    """
    measurement = Measurement(load)
    run = _Run(load, measurement, images)
    streams = [_Stream(run) for _ in range(load.streams)]
    patience_s = 0.0
    try:
        await asyncio.gather(*(stream.open(open_lane) for stream in streams))
        await _send_and_watch(run, streams, server_cpu_s)
        patience_s = load.drain_s
    finally:
        await _finish(streams, patience_s)
    if not measurement.answered and measurement.lost.total() == len(streams):
        code = measurement.lost.most_common(1)[0][0]
        raise error_for(code, f"the server ended all {len(streams)} streams with {code} before it answered a frame")
    return measurement


async def _send_and_watch(run: _Run, streams: Sequence[_Stream], server_cpu_s: Callable[[], float]) -> None:
    load, seen = run.load, run.measurement
    is_open = load.rate is not None
    sending = [asyncio.create_task(stream.send_posted() if is_open else stream.keep_full()) for stream in streams]
    posting = asyncio.create_task(_post(run, streams)) if is_open else None
    try:
        # both waits end early where every stream was lost
        await asyncio.wait(sending, timeout=load.warm_up_s)
        client_cpu, server_cpu, run.begins = time.process_time(), server_cpu_s(), time.perf_counter()
        await asyncio.wait(sending, timeout=load.seconds)
        run.ends = time.perf_counter()
        seen.seconds = run.ends - run.begins
        seen.client_cpu_s, seen.server_cpu_s = time.process_time() - client_cpu, server_cpu_s() - server_cpu
        # to cancel a write would cancel its whole call, so the senders are asked to stop
        if posting is not None:
            posting.cancel()
        for stream in streams:
            stream.stop()
        await asyncio.wait(sending, timeout=load.drain_s)
    finally:
        tasks = sending if posting is None else [*sending, posting]
        for task in tasks:
            task.cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
    for end in ends:
        if isinstance(end, Exception):
            raise end


async def _post(run: _Run, streams: Sequence[_Stream]) -> None:
    """Let messages fall due as a Poisson process, each on the next stream."""
    load, chance, clock = run.load, random.Random(run.load.seed), time.perf_counter
    assert load.rate is not None
    due = clock()
    for stream in itertools.cycle(streams):
        due += chance.expovariate(load.rate / load.batch)
        await asyncio.sleep(max(due - clock(), 0))
        stream.posted.put_nowait(due)


async def _finish(streams: Sequence[_Stream], patience_s: float) -> None:
    finishing = [asyncio.ensure_future(stream.lane.finish()) for stream in streams if stream.lane is not None]
    if finishing:
        await asyncio.wait(finishing, timeout=patience_s)
    for task in finishing:
        task.cancel()
    await asyncio.gather(*finishing, return_exceptions=True)
    for stream in streams:
        stream.give_up()


@dataclass(slots=True)
class _Run:
    """What the streams of one run share."""

    load: Load
    measurement: Measurement
    images: int
    numbers: itertools.count[int] = field(default_factory=itertools.count)
    begins: float = float("inf")
    ends: float = float("inf")

    def next_frames(self) -> list[Sent]:
        return [Sent(number, number % self.images) for number in itertools.islice(self.numbers, self.load.batch)]

    def is_inside(self, moment: float) -> bool:
        return self.begins <= moment < self.ends


class _Stream:
    """One lane with the frames on their way along it; the lane's sink."""

    def __init__(self, run: _Run) -> None:
        self._run, self._load = run, run.load
        self._under_way: dict[int, tuple[float, int]] = {}
        """When each frame was sent or due, and its image, by number."""
        self._resting = 0
        """Places not to be filled yet, since the server asked to wait."""
        self._room = asyncio.Event()
        self._most = run.load.in_flight - run.load.batch
        """With so many frames under way there is room for one more message."""
        self.posted: asyncio.Queue[float | None] = asyncio.Queue()
        """When each message of an open loop was due; None ends it."""
        self._stopped = self._lost = False
        self.lane: Lane | None = None

    async def open(self, open_lane: OpenLane) -> None:
        self.lane = await open_lane(self)

    async def keep_full(self) -> None:
        """Closed loop: send whenever there is room."""
        while not self._stopped:
            if len(self._under_way) + self._resting <= self._most:
                await self._send(time.perf_counter())
            else:
                self._room.clear()
                await self._room.wait()

    async def send_posted(self) -> None:
        """Open loop: send what falls due."""
        while not self._lost and (due := await self.posted.get()) is not None:
            if self._run.is_inside(due):
                self._run.measurement.lateness_ms.append((time.perf_counter() - due) * 1000)
            await self._send(due)

    def stop(self) -> None:
        """Send no more, save what is due already."""
        self._stopped = True
        self._room.set()
        self.posted.put_nowait(None)

    async def _send(self, due: float) -> None:
        frames = self._run.next_frames()
        for number, image in frames:
            self._under_way[number] = due, image
        assert self.lane is not None
        await self.lane.send(frames)

    # --- the lane's sink ----------------------------------------------------------------------------------------------

    def answered(self, answer: Answer) -> None:
        sent = self._under_way.pop(answer.number, None)
        if sent is None:
            return
        now, (due, image), seen = time.perf_counter(), sent, self._run.measurement
        if not answer.error:
            seen.labels[image] = answer.label
            seen.answered += self._run.is_inside(now)
        if self._counts(due, now):
            if answer.error:
                seen.errors[answer.error] += 1
            else:
                seen.latencies_ms.append((now - due) * 1000)
                seen.exits[answer.exit] += 1
                seen.cost_sum += answer.cost
        if answer.retry_after_ms and self._load.rate is None:
            self._resting += 1
            asyncio.get_running_loop().call_later(answer.retry_after_ms / 1000, self._rested)
        elif len(self._under_way) + self._resting <= self._most:
            self._room.set()

    def lost(self, error: str) -> None:
        self._lost = True
        self._run.measurement.lost[error] += 1
        for number in list(self._under_way):
            self.answered(Answer(number, error=error))
        self.stop()

    def give_up(self) -> None:
        """Count what is under way now, or was never sent, as unanswered."""
        never_sent = [due for due in _drained(self.posted) if due is not None] * self._load.batch
        dues = [*(due for due, _ in self._under_way.values()), *never_sent]
        self._run.measurement.unanswered += sum(self._load.rate is None or self._run.is_inside(due) for due in dues)
        self._under_way.clear()

    def _rested(self) -> None:
        self._resting -= 1
        self._room.set()

    def _counts(self, due: float, now: float) -> bool:
        return self._run.is_inside(now if self._load.rate is None else due)


def _drained(queue: asyncio.Queue[float | None]) -> Iterator[float | None]:
    while not queue.empty():
        yield queue.get_nowait()

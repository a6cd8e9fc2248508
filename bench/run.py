"""The benchmark: Offramp beside Triton, MLServer, LitServe, Ray Serve and the bare loop, in one go on one machine.

    python bench/run.py [--quick] [--bundle FOLDER] [--peers triton,mlserver,litserve,ray-serve]
    python bench/run.py --table bench/results/full.json       prints a former run's Markdown

Peers' environments are made from PyPI under .bench/, or where OFFRAMP_BENCH_HOME says. Where OFFRAMP_CIFAR10 names an image
folder its test pictures are the frames, else the client's demo, which has no labels. docs/benchmark.md says how to read it all.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from compare.goals import judge
from compare.graphs import served_networks
from compare.machine import describe_machine, describe_versions
from compare.peers import PEERS
from compare.peers.peer import Peer
from compare.plan import BARE_BATCH, FULL, MODES, QUICK, Plan
from compare.processes import ServerProcess, StartError
from compare.report import render
from compare.rounds import Way, medians
from compare.subjects import CONNECTIONS, Bare, Frames, OfframpServer, PeerServer
from offramp_client import Control
from offramp_client.bench_frames import load_frames
from offramp_model.bundle import WEIGHTS, Bundle, BundleStore, Manifest, open_bundle
from offramp_server.config import DEFAULT_MODEL, default_store

ROOT = Path(__file__).resolve().parents[1]


class Run:
    """One run of the benchmark."""

    def __init__(self, plan: Plan, bundle: Bundle, peers: list[Peer], home: Path) -> None:
        self._plan, self._bundle, self._peers, self._home = plan, bundle, peers, home
        self._control = bundle.manifest.default_control
        self._frames = read_frames(bundle.manifest, plan.frames)
        self._processes: list[ServerProcess] = []
        self._ways: list[Way] = []
        self._bare: dict[str, list[dict[str, Any]]] = {}
        self._absent: dict[str, dict[str, Any]] = {}
        self._present: dict[str, dict[str, Any]] = {}

    async def __call__(self) -> dict[str, Any]:
        """Start everything, go through the rounds, stop everything; return the results."""
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="offramp-bench-", ignore_cleanup_errors=True) as scratch:
            folder = Path(scratch)
            bare = Bare(self._bundle, self._frames, self._control.model_dump_json(), folder)
            try:
                full = self._full_labels(bare)
                about = await self._start_offramp(folder)
                await self._start_peers(folder)
                for number in range(1, self._plan.rounds + 1):
                    await self._go_round(number, bare)
            finally:
                say("stopping")
                bare.stop()
                with ThreadPoolExecutor(len(self._processes) or 1) as pool:
                    list(pool.map(ServerProcess.stop, self._processes))
        return self._results(full, about, bare.about, (time.monotonic() - started) / 60)

    async def _start_offramp(self, folder: Path) -> dict[str, str]:
        say("starting offramp")
        server = OfframpServer(self._bundle, folder)
        self._processes.append(server.process)
        await server.until_ready()
        about = await server.describe()
        chosen = self._control
        adaptive = Control(chosen.policy, chosen.lambda_, chosen.threshold, max_exit=chosen.max_exit)  # type: ignore[arg-type]
        plan = self._plan
        for name, control, load in (
            *((f"adaptive/{mode}", adaptive, plan.load(mode)) for mode in MODES),
            *((f"uncut/{mode}", Control("fixed"), plan.load(mode)) for mode in MODES),  # type: ignore[arg-type]
            ("adaptive/lone", adaptive, plan.lone()),
            ("uncut/lone", Control("fixed"), plan.lone()),  # type: ignore[arg-type]
            ("adaptive/1000 streams", adaptive, plan.many()),
        ):
            lanes = partial(server.lanes, self._frames, control, min(load.streams, CONNECTIONS))
            self._ways.append(Way(f"offramp/{name}", server.process, lanes, load))
        server.process.pause()
        return about

    async def _start_peers(self, folder: Path) -> None:
        threads = os.cpu_count() or 1
        say("exporting the network for the peers")
        networks = served_networks(self._bundle, self._home, threads, with_bfloat16=self._plan.with_bfloat16)
        for peer in self._peers:
            say(f"starting {peer.name}")
            place = folder / peer.name
            place.mkdir()
            try:
                server = PeerServer(peer, networks, self._bundle, self._home, place)
                self._processes.append(server.process)
                await server.until_ready(self._frames)
            except (StartError, OSError) as error:
                say(f"{peer.name} is left out: {error}")
                self._absent[peer.name] = {"failure": str(error)}
                continue
            self._present[peer.name] = {"versions": server.versions, "tuning": peer.tuning}
            for network in networks:
                for mode in MODES:
                    load = self._plan.load(mode)
                    lanes = partial(server.lanes, self._frames, network.name, min(load.streams, CONNECTIONS))
                    self._ways.append(Way(f"{peer.name}/{network.name}/{mode}", server.process, lanes, load))
            server.process.pause()

    async def _go_round(self, number: int, bare: Bare) -> None:
        say(f"round {number} of {self._plan.rounds}")
        for name, what, batch in (
            ("adaptive", "adaptive", BARE_BATCH),
            ("uncut", "uncut", BARE_BATCH),
            ("adaptive, batch 1", "adaptive", 1),
            ("uncut, batch 1", "uncut", 1),
        ):
            self._bare.setdefault(name, []).append(bare.do(what, batch=batch, seconds=self._plan.bare_seconds))
        for way in self._ways:
            await way.run(self._frames)
            say(f"  {way.key}: {way.failure or format(way.rounds[-1]['frames_per_s'], '.0f')}")

    def _full_labels(self, bare: Bare) -> list[int]:
        """What the full network answers in float32; kept, since it takes a while."""
        what = f"{self._bundle.manifest.files[WEIGHTS]} {hashlib.sha256(self._frames.images_NHWC.tobytes()).hexdigest()}"
        kept = self._home / f"full-{hashlib.sha256(what.encode()).hexdigest()[:16]}.json"
        if not kept.is_file():
            say("asking the full network in float32")
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(json.dumps(bare.do("full")))
        labels: list[int] = json.loads(kept.read_text())
        return labels

    def _results(self, full: list[int], about: dict[str, str], bare: dict[str, Any], minutes: float) -> dict[str, Any]:
        frames, manifest = self._frames, self._bundle.manifest
        ways = {way.key: way.report(frames, full) for way in self._ways}
        loops = {
            name: {
                "rounds": rounds,
                "median": medians(rounds),
                "spread": [pick(each["frames_per_s"] for each in rounds) for pick in (min, max)],
            }
            for name, rounds in self._bare.items()
        }
        exits = np.bincount(bare["exits"], minlength=manifest.network.exits + 1)[1:] / len(frames.images_NHWC)
        right = None if frames.truth is None else statistics.mean(map(int.__eq__, full, frames.truth))
        return {
            "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            "command": " ".join(["python bench/run.py", *sys.argv[1:]]),
            "minutes": minutes,
            "plan": asdict(self._plan),
            "machine": describe_machine(),
            "versions": describe_versions(),
            "model": {"name": manifest.name, "version": manifest.version, **about},
            "control": {name: value for name, value in self._control.model_dump().items() if value is not None},
            "frames": {"source": frames.source, "count": len(frames.images_NHWC), "full_accuracy": right},
            "peers": self._present | self._absent,
            "goals": judge(ways, loops),
            "ways": ways,
            "bare": loops,
            "bare_exits": exits.round(4).tolist(),
        }


def read_frames(manifest: Manifest, count: int) -> Frames:
    """CIFAR-10's test pictures where they are at hand, else the demo."""
    folder, size = os.environ.get("OFFRAMP_CIFAR10"), manifest.network.input_size
    source = str(Path(folder) / "test") if folder else "demo"
    found = load_frames(source, count, manifest.labels, (size, size))
    return Frames("CIFAR-10's test pictures" if folder else "the demo", np.stack(found.images), found.truth)


def say(message: str) -> None:
    """Tell whoever waits how far it is."""
    print(message, file=sys.stderr, flush=True)


def main() -> None:
    """Read the command line, run, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="in under five minutes")
    parser.add_argument("--bundle", type=Path, help="folder of a bundle; the newest embedded one where not given")
    parser.add_argument("--peers", default=",".join(peer.name for peer in PEERS), help="which to measure; empty for none")
    parser.add_argument("--rounds", type=int, help="in place of the plan's")
    parser.add_argument("--seconds", type=float, help="of one load in one round, in place of the plan's")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results", help="folder for the JSON and the Markdown")
    parser.add_argument("--table", type=Path, metavar="JSON", help="print the Markdown of a former run, and run nothing")
    arguments = parser.parse_args()
    if arguments.table:
        print(render(json.loads(arguments.table.read_text())), end="")
        return
    wanted = [name for name in arguments.peers.split(",") if name]
    if unknown := sorted(set(wanted) - {peer.name for peer in PEERS}):
        parser.error(f"--peers: {', '.join(unknown)} is none of {', '.join(peer.name for peer in PEERS)}")
    plan = QUICK if arguments.quick else FULL
    plan = replace(plan, rounds=arguments.rounds or plan.rounds, seconds=arguments.seconds or plan.seconds)
    bundle = open_bundle(arguments.bundle) if arguments.bundle else BundleStore(default_store()).open(DEFAULT_MODEL)
    home = Path(os.environ.get("OFFRAMP_BENCH_HOME") or ROOT / ".bench").resolve()
    results = asyncio.run(Run(plan, bundle, [peer for peer in PEERS if peer.name in wanted], home)())
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / f"{plan.name}.json").write_text(json.dumps(results, indent=1) + "\n")
    (arguments.out / f"{plan.name}.md").write_text(render(results))
    print(render(results), end="")


if __name__ == "__main__":
    main()

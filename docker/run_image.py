"""Run an unpacked image as a container engine would, stream frames to its server, and stop it; docker/verify.sh's second half.

It must be alone in new mount, network and process namespaces, as root: `unshare --mount --net --pid --fork`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

START_TIMEOUT_S = 120
FRAMES = 60
SCRAPE = "import urllib.request; print(urllib.request.urlopen('http://localhost:9464/metrics').read().decode())"
BUILD_TOOLS = ("cc", "gcc", "g++", "make", "ld", "pip")


class Image:
    """An image's unpacked root and what its configuration says of running it."""

    def __init__(self, root: Path, config: dict[str, Any]) -> None:
        self.root, self.config = root, config
        user, _, group = str(config["User"]).partition(":")
        self.user, self.group = int(user), int(group)
        assert self.user != 0, "the image runs as root"
        self.environment = dict(entry.split("=", 1) for entry in config["Env"])

    def mount(self) -> None:
        """Make the root read-only, with /proc, /dev, an empty /tmp and the name localhost on it, as engines do."""
        (self.root / "etc" / "hosts").write_text("127.0.0.1 localhost\n")
        run("mount", "--make-rprivate", "/")
        run("mount", "--bind", str(self.root), str(self.root))
        run("mount", "-o", "remount,bind,ro", str(self.root))
        run("mount", "-t", "proc", "proc", str(self.root / "proc"))
        run("mount", "--rbind", "/dev", str(self.root / "dev"))
        run("mount", "-t", "tmpfs", "-o", "mode=1777,size=64m", "tmpfs", str(self.root / "tmp"))

    def find(self, command: str) -> str | None:
        """Where a command lies inside, by the image's PATH."""
        folders = self.environment["PATH"].split(":")
        # not followed: links are to be read from inside
        return next((f"{folder}/{command}" for folder in folders if os.path.lexists(f"{self.root}{folder}/{command}")), None)

    def start(self, *command: str, **options: Any) -> subprocess.Popen[str]:
        """Start a command inside, as the image's user, in the image's environment."""

        def enter() -> None:
            os.chroot(self.root)
            os.chdir("/")
            os.setgroups([])
            os.setgid(self.group)
            os.setuid(self.user)

        inside = self.find(command[0])
        assert inside is not None, f"the image has no {command[0]}"
        return subprocess.Popen([inside, *command[1:]], env=self.environment, preexec_fn=enter, text=True, **options)

    def run(self, *command: str) -> str:
        """Run a command inside to its end; returns what it printed."""
        process = self.start(*command, stdout=subprocess.PIPE)
        printed, _ = process.communicate(timeout=START_TIMEOUT_S)
        assert process.returncode == 0, f"{command} ended with {process.returncode}: {printed}"
        return printed


def run(*command: str) -> None:
    """Run a command of this machine. Raises CalledProcessError."""
    subprocess.run(command, check=True)


def check(image: Image) -> None:
    """Start the server as the image does, wait until it is healthy, use it, and tell it to stop."""
    assert [tool for tool in BUILD_TOOLS if image.find(tool)] == []
    refused = image.start(*image.config["Entrypoint"], stderr=subprocess.PIPE)
    _, said = refused.communicate(timeout=START_TIMEOUT_S)
    assert refused.returncode == 2, f"the image serves in the clear without being asked to: {said}"
    assert "--insecure" in said, said
    server = image.start(*image.config["Entrypoint"], *(image.config.get("Cmd") or ()), "--insecure")
    health = image.config["Healthcheck"]["Test"]
    assert health[0] == "CMD"
    deadline = time.monotonic() + START_TIMEOUT_S
    while image.start(*health[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).wait() != 0:
        assert server.poll() is None, f"the server ended with {server.returncode}"
        assert time.monotonic() < deadline, "the image did not become healthy"
    print(image.run("offramp", "models").strip())
    streamed = image.run("offramp", "stream", "demo", "--plain", f"--frames={FRAMES}")
    print("\n".join(streamed.splitlines()[-6:]))
    classified = [line for line in image.run("python3", "-c", SCRAPE).splitlines() if line.startswith("offramp_frames_total")]
    assert sum(float(line.rsplit(" ", 1)[1]) for line in classified) == FRAMES, "\n".join(classified)
    uids = (image.root / f"proc/{server.pid}/status").read_text().split("Uid:")[1].split()[:4]
    assert set(uids) == {str(image.user)}, uids
    try:
        (image.root / "written").touch()
    except OSError as error:
        print(f"its root filesystem is read-only: {error.strerror}")
    else:
        raise AssertionError("the root filesystem can be written to")
    server.terminate()
    assert server.wait(START_TIMEOUT_S) == 0, f"the server ended with {server.returncode}"
    print(f"{FRAMES} frames were classified by a server of user {image.user}, which drained and ended with 0")


def main() -> None:
    """Check the image whose root and description, as buildah inspects it, are the two arguments."""
    described = json.loads(Path(sys.argv[2]).read_text())
    image = Image(Path(sys.argv[1]), described["Docker"]["config"])
    run("ip", "link", "set", "lo", "up")
    image.mount()
    check(image)


if __name__ == "__main__":
    main()

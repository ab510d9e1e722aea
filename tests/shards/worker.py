"""A process that serves toy shards (toy_process.py), seen from its parent."""

import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


class Worker:
    """Is a serving process and the lines it has printed."""

    def __init__(self, name: str, folder: Path, shards: int) -> None:
        self.name = name
        program = [sys.executable, "-m", "tests.shards.toy_process"]
        command = [*program, name, str(folder), f"{shards}"]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), False)
        self._pipe = self.process.stdout
        self._text = ""

    def lines(self, kind: str) -> list[list[str]]:
        """Return the words of the printed lines of a kind, so far."""
        self._text += (self._pipe.read() or b"").decode()
        return [words for line in self._text.splitlines() if (words := line.split())[0] == kind]

    def tenures(self) -> list[list[str]]:
        """Return shard and epoch of what it owns now, as far as it has told."""
        left = [words[1:3] for words in self.lines("left")]
        return [words[1:3] for words in self.lines("owner") if words[1:3] not in left]

    def kill(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.process.kill()
        self.process.communicate()

"""Is a pay backend over HTTP that keeps idempotency keys and has bad manners (faults.md F6).

    python -m tests.processes.paydesk SEED JOURNAL

It books a payment and drops the connection before it answers, answers 503 before it books, and
tells a repeated call in either of the two ways that backends have. Prints its port; each line of
the journal (JSON) is one call: what it answered, the key, and the amount if it was booked.
"""

import asyncio
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from hongbao.client.draws import seeded_draw

DROP_SHARE, BUSY_SHARE = 0.15, 0.05
ROOT = Path(__file__).parents[2]

Payment = dict[str, Any]


class Paydesk:
    """Is the desk as a test sees it."""

    def __init__(self, url: str, journal: Path) -> None:
        self.url = url
        self._journal = journal

    @property
    def booked(self) -> list[tuple[str, int]]:
        """Return key and amount of every payment, in order."""
        return [(one["key"], one["fen"]) for one in self._calls() if one["fen"] is not None]

    @property
    def answers(self) -> Counter[str]:
        return Counter(one["answer"] for one in self._calls())

    def _calls(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._journal.read_text().splitlines()]


@contextmanager
def open_paydesk(seed: int, journal: Path) -> Iterator[Paydesk]:
    """Serve a pay desk in a process of its own, on a free port of this machine."""
    command = [sys.executable, "-m", __name__, str(seed), str(journal)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        try:
            yield Paydesk(f"http://127.0.0.1:{port}/pay", journal)
        finally:
            process.kill()


class _Backend:
    def __init__(self, seed: int, journal: TextIO) -> None:
        self._draw = seeded_draw(seed)
        self._journal = journal
        self._first: dict[str, Payment] = {}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                lines = head.decode().split("\r\n")[1:]
                headers = dict(line.lower().split(": ", 1) for line in lines if line)
                body = await reader.readexactly(int(headers["content-length"]))
                answer = self._pay(headers["idempotency-key"], json.loads(body))
                if answer is None:
                    break
                data = json.dumps(answer[1]).encode()
                start = f"HTTP/1.1 {answer[0]} X\r\ncontent-length: {len(data)}\r\n\r\n"
                writer.write(start.encode() + data)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the caller was killed, or is done
        finally:
            writer.close()

    def _pay(self, key: str, payment: Payment) -> tuple[int, Payment] | None:
        """Return status and body; None: booked, and the connection is to be dropped."""
        if key in self._first:
            conflict = self._draw() < 0.5
            self._note("conflict" if conflict else "exists", key)
            return (409, self._first[key]) if conflict else (200, {"status": "exists"})
        if self._draw() < BUSY_SHARE:
            self._note("busy", key)
            return 503, {}
        self._first[key] = payment
        dropped = self._draw() < DROP_SHARE
        self._note("dropped" if dropped else "paid", key, payment["amount_fen"])
        return None if dropped else (200, {"status": "paid"})

    def _note(self, answer: str, key: str, fen: int | None = None) -> None:
        print(json.dumps({"answer": answer, "key": key, "fen": fen}), file=self._journal)
        self._journal.flush()


async def _main(seed: int, journal: Path) -> None:
    with journal.open("a") as file:
        server = await asyncio.start_server(_Backend(seed, file).serve, "127.0.0.1", 0)
        print(server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1]), Path(sys.argv[2])))

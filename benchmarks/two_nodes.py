"""vLLM with the plugin on two nodes, which are two addresses of this machine: the answers of one rank; a lost worker.

    python benchmarks/two_nodes.py CHECKPOINT [--vllm COMMAND] [FLAGS]

CHECKPOINT is a directory that faquant has quantized, with an even number of key/value heads; FLAGS go to every
`vllm serve`. Needs Linux, vLLM with the plugin, and some 7 minutes: vLLM starts three times. It

1. asks a service of one rank and one of two nodes with tensor parallelism 2, and compares tokens and logprobs;
2. kills the worker of node 1 during an answer, starts both nodes again, and kills the worker of node 0;
3. prints the seconds until the request ends with an error, /health is not 200, and each node's command ends.

Exits with 1 if answers differ, or if a request or node 0 does not end within a minute. Node 1 may stay when node 0 has
ended: this version of vLLM does not end it. This script ends all that it has started.
"""

import argparse
import http.client
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

ADDRESSES = ("127.0.0.1", "127.0.0.2")
ENVIRONMENT = {
    "GLOO_SOCKET_IFNAME": "lo",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
}
FLAGS = ["--dtype", "float32", "--enforce-eager", "--max-num-seqs", "4", "--served-model-name", "model"]
PROMPTS = ("Once upon a time", "The history of the lighthouse begins with fire on a hill. " * 40)
READY, LOST, GRACE = 600, 60, 20
"""Seconds: for a service to be ready, for an answer and its service to end, for a node to end after SIGTERM."""


class WrongError(Exception):
    """What this script must not see."""


class Node:
    """One `vllm serve`, with all its processes, in a process group of its own."""

    def __init__(self, command: list[str], rank: int, flags: list[str], log: Path) -> None:
        environment = {**ENVIRONMENT, **os.environ, "VLLM_HOST_IP": ADDRESSES[rank]}
        self.log = log
        with log.open("w") as output:
            self._process = subprocess.Popen(
                [*command, "serve", *flags],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )

    @property
    def has_ended(self) -> bool:
        """Leaves the process unreaped: until `close`, nobody else gets its number."""
        return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def kill_worker(self) -> None:
        for directory in Path("/proc").glob("[0-9]*"):
            with suppress(FileNotFoundError, ProcessLookupError):
                number = int(directory.name)
                name = (directory / "cmdline").read_bytes()
                if os.getpgid(number) == self._process.pid and name.startswith(b"VLLM::Worker"):
                    os.kill(number, signal.SIGKILL)
                    return
        raise WrongError(f"no worker to kill: see {self.log}")

    def close(self) -> None:
        """End all processes, also those whose parents have ended."""
        os.kill(self._process.pid, signal.SIGTERM)
        end = time.monotonic() + GRACE
        while not self.has_ended and time.monotonic() < end:
            time.sleep(0.1)
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


class Service:
    """A context: one node or two, ready to answer.

    Raises:
        WrongError: it is not ready in time.
    """

    def __init__(self, command: list[str], checkpoint: Path, more: list[str], nodes: int, logs: Path) -> None:
        self.port, master = free_port(), free_port()
        shared = [str(checkpoint), *FLAGS, *more]
        if nodes > 1:
            shared += ["--tensor-parallel-size", str(nodes), "--nnodes", str(nodes)]
            shared += ["--master-addr", ADDRESSES[0], "--master-port", str(master)]
        own = [["--host", ADDRESSES[0], "--port", str(self.port)], ["--headless"]]
        self.nodes: list[Node] = []
        begin = time.monotonic()
        with ExitStack() as stack:
            for rank in range(nodes):
                which = ["--node-rank", str(rank)] if nodes > 1 else []
                log = logs / f"{nodes}-{rank}-{self.port}.log"
                self.nodes.append(Node(command, rank, [*shared, *which, *own[rank]], log))
                stack.callback(self.nodes[-1].close)
            while self.health() != 200:
                if any(node.has_ended for node in self.nodes) or time.monotonic() > begin + READY:
                    raise WrongError("not ready\n" + "".join(node.log.read_text()[-3000:] for node in self.nodes))
                time.sleep(0.5)
            self._stack = stack.pop_all()
        print(f"{nodes} ranks, ready after {time.monotonic() - begin:.0f} s", flush=True)

    def __enter__(self) -> "Service":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _connection(self, timeout: float) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(ADDRESSES[0], self.port, timeout=timeout)

    def health(self) -> int:
        """The status of /health; 0: no answer."""
        try:
            connection = self._connection(2)
            connection.request("GET", "/health")
            return connection.getresponse().status
        except OSError:
            return 0

    def complete(self, timeout: float, **body: object) -> http.client.HTTPResponse:
        connection = self._connection(timeout)
        request = json.dumps({"model": "model", "temperature": 0, "ignore_eos": True, **body})
        connection.request("POST", "/v1/completions", request, {"Content-Type": "application/json"})
        return connection.getresponse()

    def answers(self) -> list[Any]:
        """Tokens and logprobs of two prompts.

        Raises:
            WrongError: no answer.
        """
        found = []
        for prompt in PROMPTS:
            answer = self.complete(300, prompt=prompt, max_tokens=100, logprobs=5, return_token_ids=True)
            if answer.status != 200:
                raise WrongError(f"status {answer.status}: {answer.read()[:500]!r}")
            (choice,) = json.load(answer)["choices"]
            found.append((choice["token_ids"], choice["logprobs"]))
        return found

    def lose(self, rank: int) -> None:
        """Kill the worker of a node during a long answer, and print when what has ended.

        Raises:
            WrongError: something goes on, or the answer ends without an error.
        """
        begun, times, ends = threading.Event(), dict[str, float](), list[bytes]()

        def stream() -> None:
            answer = self.complete(READY, prompt=PROMPTS[0], max_tokens=1500, stream=True)
            for number, line in enumerate(answer):
                if number == 40:
                    begun.set()
                if b'"error"' in line:
                    ends.append(line)
            times["request"] = time.monotonic()

        threading.Thread(target=stream, daemon=True).start()
        if not begun.wait(LOST):
            raise WrongError("no tokens to interrupt")
        begin = time.monotonic()
        self.nodes[rank].kill_worker()
        while time.monotonic() < begin + LOST and len(times) < 2 + len(self.nodes):
            if "health" not in times and self.health() != 200:
                times["health"] = time.monotonic()
            for number, node in enumerate(self.nodes):
                if node.has_ended:
                    times.setdefault(f"node {number}", time.monotonic())
            time.sleep(0.1)
        print(f"worker of node {rank} killed; seconds until it shows:", end="")
        for what in ("request", "health", "node 0", "node 1"):
            print(f"  {what} {times[what] - begin:.1f}" if what in times else f"  {what} never", end="")
        print(flush=True)
        if not {"request", "health", "node 0"} <= set(times) or not ends:
            raise WrongError(f"the answer's errors: {ends}")


def free_port() -> int:
    with socket.socket() as some:
        some.bind((ADDRESSES[0], 0))
        return int(some.getsockname()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--vllm", default="vllm", help="the command that starts vLLM")
    arguments, more = parser.parse_known_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with tempfile.TemporaryDirectory() as logs:
        common = (shlex.split(arguments.vllm), arguments.checkpoint.resolve(), more)
        with Service(*common, 1, Path(logs)) as service:
            expected = service.answers()
        for rank in (1, 0):
            with Service(*common, 2, Path(logs)) as service:
                if service.answers() != expected:
                    raise WrongError("two nodes answer otherwise than one rank")
                log = service.nodes[0].log.read_text()
                print(f"answers equal, {'gloo' if 'falling back to torch.distributed' in log else 'shared memory'}")
                service.lose(rank)


if __name__ == "__main__":
    try:
        main()
    except WrongError as wrong:
        sys.exit(f"wrong: {wrong}")

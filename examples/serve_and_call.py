"""Start a server, stream an answer from it, and stop it: python examples/serve_and_call.py OUT

Needs the package openai.
"""

import subprocess
import sys
import time
import urllib.error
import urllib.request

from openai import OpenAI

PORT = 8123
URL = f"http://127.0.0.1:{PORT}"


def wait_until_ready(server: subprocess.Popen[bytes]) -> None:
    """Wait until the server answers. Raises: RuntimeError: it has ended."""
    while server.poll() is None:
        try:
            urllib.request.urlopen(f"{URL}/health", timeout=1)
            return
        except (urllib.error.URLError, TimeoutError):
            time.sleep(0.1)
    raise RuntimeError(f"the server ended with status {server.returncode}")


def main(directory: str) -> None:
    command = [sys.executable, "-m", "faquant", "serve", directory, "--port", str(PORT)]
    server = subprocess.Popen(command)
    try:
        wait_until_ready(server)
        client = OpenAI(base_url=f"{URL}/v1", api_key="none")
        stream = client.chat.completions.create(
            model=client.models.list().data[0].id,
            messages=[{"role": "user", "content": "What is the capital of France?"}],
            max_tokens=64,
            stream=True,
        )
        for event in stream:
            print(event.choices[0].delta.content or "", end="", flush=True)
        print()
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main(*sys.argv[1:])

"""A real S3 server on this machine (moto's), and a wire to it that can be cut in the middle of an object."""

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import fsspec
from moto.server import ThreadedMotoServer
from s3fs import S3FileSystem

BUCKET = "s3://corpus"


class Wire:
    """Forwards TCP to a port; the next `cuts` answers longer than `after_bytes` break off there."""

    def __init__(self, port: int) -> None:
        self.target, self.cuts, self.after_bytes, self.n_cut = port, 0, 4096, 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:  # closed
                return
            server = socket.create_connection(("127.0.0.1", self.target))
            threading.Thread(target=self._forward, args=(client, server, False), daemon=True).start()
            threading.Thread(target=self._forward, args=(server, client, True), daemon=True).start()

    def _forward(self, source: socket.socket, target: socket.socket, is_answer: bool) -> None:
        sent = 0
        with suppress(OSError):
            while data := source.recv(2048):
                target.sendall(data)
                sent += len(data)
                if is_answer and self.cuts and sent > self.after_bytes:
                    self.cuts -= 1
                    self.n_cut += 1
                    break
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


@contextmanager
def s3_server() -> Iterator[Wire]:
    """Start an S3 server with one bucket; in the block, s3:// means it, through the wire returned."""
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    wire = Wire(server.get_host_and_port()[1])
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{wire.port}",
        "AWS_ACCESS_KEY_ID": "tests",
        "AWS_SECRET_ACCESS_KEY": "tests",
        "AWS_DEFAULT_REGION": "us-east-1",
        "NO_PROXY": "127.0.0.1",
    }
    with patch.dict(os.environ, environment):
        S3FileSystem.clear_instance_cache()
        store().makedirs(BUCKET, exist_ok=True)  # servers of one process share what they hold
        try:
            yield wire
        finally:
            S3FileSystem.clear_instance_cache()
            wire.listener.close()
            server.stop()


def store() -> Any:
    """Return the store as fsspec sees it."""
    return fsspec.filesystem("s3")


def put(folder: Path, url: str) -> None:
    """Copy a folder's files to a URL."""
    for path in folder.rglob("*"):
        if path.is_file():
            store().put_file(str(path), f"{url}/{path.relative_to(folder).as_posix()}")

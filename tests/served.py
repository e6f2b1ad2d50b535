"""The explorer's server in a thread, on a port of its own."""

import json
import socket
import threading
from contextlib import contextmanager
from http.client import HTTPConnection

import uvicorn

from engine.explore.app import build_app
from engine.explore.serve import context


@contextmanager
def served(studio):
    """Gives host:port; the server is gone when the block ends."""
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(build_app(studio, context(studio)), log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=30)
        listening.close()


def ask(place, method, path, body=None, **headers):
    """(status, JSON or bytes) of one request."""
    connection = HTTPConnection(place, timeout=60)
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    is_json = answer.headers["content-type"].startswith("application/json")
    return answer.status, json.loads(content) if is_json else content

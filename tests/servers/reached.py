"""A real HTTP server of this machine for tests, and the ways in which it errs."""

import json
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Handler = BaseHTTPRequestHandler


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *arguments: object) -> None:
        """Silent: clients hang up on purpose, and what a test reads on stderr is the command's."""


class Reached:
    """A server in this process. `right(payload)` is what it answers; `errs_by_payload(payload)` and `errs(n)`, of the n-th
    request, say what goes wrong with it: a function of the handler, or another reply; None: nothing."""

    def __init__(self, right: Callable[[dict[str, Any]], Any], *, port: int = 0):
        self.right = right
        self.listed: Any = {"data": []}
        self.requests: list[dict[str, Any]] = []
        self.errs: Callable[[int], Any] = lambda number: None
        self.errs_by_payload: Callable[[dict[str, Any]], Any] = lambda payload: None
        self.lock, self.at_once, self.most_at_once = threading.Lock(), 0, 0
        reached = self

        class Answering(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                reached.answer(self)

            def do_GET(self) -> None:
                said = reached.listed if self.path == "/v1/models" else None
                say(self, 200 if said else 404, said or {"error": "no such path"})

            def log_message(self, *arguments: object) -> None:
                pass

        self.server = Server(("127.0.0.1", port), Answering)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        threading.Thread(target=self.server.serve_forever, args=[0.05], daemon=True).start()

    def answer(self, handler: Handler) -> None:
        payload = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self.lock:
            self.requests.append(payload | {"path": handler.path, "key": handler.headers["Authorization"]})
            number = len(self.requests)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            error = self.error_of(payload, number)
            error(handler) if callable(error) else say(handler, 200, error or self.right(payload))
        finally:
            with self.lock:
                self.at_once -= 1

    def error_of(self, payload: dict[str, Any], number: int) -> Any:
        return self.errs_by_payload(payload) or self.errs(number)

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def reply(text: Any, **more: Any) -> dict[str, Any]:
    """A reply of /chat/completions."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"} | more
    return {"choices": [choice], "usage": {"prompt_tokens": 100, "completion_tokens": 7}}


def say(handler: Handler, status: int, body: Any, **headers: str) -> None:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    handler.send_response(status)
    for name, value in {"Content-Length": str(len(raw)), **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(raw)


def disconnect(handler: Handler) -> None:
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RDWR)


def cut_short(handler: Handler) -> None:
    say(handler, 200, b'{"choices": [{"mess', Content_Length="400")
    disconnect(handler)


def saying(status: int, body: Any, **headers: str) -> Callable[[Handler], None]:
    return lambda handler: say(handler, status, body, **headers)

"""`rapo export --push-to-hub`: what reaches a hub on this machine, what is refused before anything is done, and that the
token is shown nowhere."""

import base64
import json
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from unittest.mock import Mock

import pytest

from rapo_jax.errors import UserError
from rapo_jax.export import push, run
from rapo_jax.export.run import ExportOptions, export_run

TOKEN = "hf_ThisIsNoToken0123456789"
SHA = "0" * 40


@dataclass
class Hub:
    """What a hub was asked for. `private` is what it says of the repository; `refuses` answers every upload with 403."""

    private: bool = False
    refuses: bool = False
    asked: list[tuple[str, str]] = field(default_factory=list)
    created: list[dict] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    tokens: set[str] = field(default_factory=set)

    def answer(self, path: str, body: bytes) -> tuple[int, object]:
        if path == "/api/repos/create":
            self.created.append(json.loads(body))
            return 200, {"url": f"{self.address}/me/model", "id": "me/model"}
        if self.refuses:
            return 403, {"error": "You have no right to write there."}
        if "/preupload/" in path:
            asked = json.loads(body)["files"]
            return 200, {
                "files": [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in asked]
            }
        if "/commit/" in path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return 200, {"commitUrl": f"{self.address}/me/model/commit/{SHA}", "commitOid": SHA, "success": True}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path.startswith("/api/models/me/model"):
            return 200, {"id": "me/model", "sha": SHA, "private": self.private, "siblings": []}
        return 404, {"error": "unknown"}

    address: str = ""


@contextmanager
def serving(hub: Hub):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            hub.asked.append((self.command, self.path))
            hub.tokens.add(self.headers.get("Authorization", ""))
            code, value = hub.answer(self.path.partition("?")[0], body)
            text = json.dumps(value).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_POST = do_GET

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def hub(monkeypatch):
    hub = Hub()
    with serving(hub):
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.address)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


@pytest.fixture
def exported(tmp_path):
    directory = tmp_path / "out"
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    (directory / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    (directory / "model.safetensors").write_bytes(bytes(range(256)))
    return directory


def test_the_whole_directory_is_uploaded_with_the_librarys_own_login(hub, exported, capfd):
    """When this fails, a published model lacks a file, or the token of its author is on the screen."""
    address = push.push(exported, "me/model", private=False)
    assert address == f"{hub.address}/me/model"
    assert hub.files == {path.name: path.read_bytes() for path in exported.iterdir()}
    assert hub.tokens - {""} == {f"Bearer {TOKEN}"}
    assert [(each["name"], each.get("organization")) for each in hub.created] == [("model", "me")]
    assert TOKEN not in "".join(capfd.readouterr())


def test_a_repository_that_should_be_private_is_never_uploaded_to_while_it_is_public(hub, exported):
    """When this fails, a model that nobody should see yet is published."""
    with pytest.raises(UserError, match=r"out is complete, but was not uploaded: me/model exists and is public"):
        push.push(exported, "me/model", private=True)
    assert not hub.files
    hub.private = True
    push.push(exported, "me/model", private=True)
    assert hub.files.keys() == {"config.json", "README.md", "model.safetensors"}
    assert hub.created[-1].get("private") or hub.created[-1].get("visibility") == "private"


def test_a_refusal_leaves_the_directory_and_says_how_to_go_on(hub, exported):
    hub.refuses = True
    with pytest.raises(UserError) as caught:
        push.push(exported, "me/model", private=False)
    said = str(caught.value)
    assert said.startswith(f"{exported} is complete, but was not uploaded to me/model: the hub answered 403: ")
    assert said.endswith(f"To try again: hf upload me/model {exported}") and TOKEN not in said
    assert len(list(exported.iterdir())) == 3


def test_a_hub_that_cannot_be_reached_is_one_sentence(exported, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"was not uploaded to me/model: the hub cannot be reached \("):
        push.push(exported, "me/model", private=False)


@pytest.mark.parametrize("error", [RuntimeError("Error while uploading 'model.safetensors'."), ValueError("")])
def test_a_large_file_that_could_not_be_uploaded_is_one_sentence(exported, monkeypatch, error):
    """When this fails, an hour's upload that breaks off ends in a traceback that does not say that the export is complete."""
    monkeypatch.setattr(push.HfApi, "create_repo", Mock(side_effect=error))
    said = str(error).rstrip(".") or "ValueError"
    with pytest.raises(
        UserError, match=f"is complete, but was not uploaded to me/model: {said}. To try again: hf upload"
    ):
        push.push(exported, "me/model", private=False)


def test_the_other_processes_wait_for_the_upload_as_long_as_it_takes(monkeypatch, tmp_path):
    """When this fails, a pod ends with an error while process 0 uploads, or with one process that is not logged in."""
    noted, address = [], "https://hub/me/model"
    monkeypatch.setattr(run, "at", lambda place, kind="works": noted.append((place, kind)))
    monkeypatch.setattr(run, "push", lambda *_, **__: noted.append("push") or address)
    assert run.uploaded(tmp_path, ExportOptions(push_to_hub="me/model")) == address
    upload = [("the upload to me/model", "elsewhere"), "push", ("the end of the upload", "works")]
    assert noted == upload
    # As another process than the first, which says that all is well, or why it is not.
    monkeypatch.setattr("rapo_jax.distributed.is_first", lambda: False)
    monkeypatch.setattr(push, "get_token", lambda: None)
    said = [None]
    monkeypatch.setattr("rapo_jax.distributed.each_process", lambda value: [*said, value])
    run.refuse_options(ExportOptions(push_to_hub="me/model"))
    assert run.uploaded(tmp_path, ExportOptions(push_to_hub="me/model")) is None and noted == upload
    said[0] = "--push-to-hub needs a login"
    with pytest.raises(UserError, match="needs a login"):
        run.refuse_options(ExportOptions(push_to_hub="me/model"))
    said[0] = "out is complete, but was not uploaded"
    with pytest.raises(UserError, match="was not uploaded"):
        run.uploaded(tmp_path, ExportOptions(push_to_hub="me/model"))


def test_an_upload_that_cannot_be_made_is_refused_before_anything_is_exported(monkeypatch, tmp_path):
    """When this fails, someone waits for an export of an hour to learn that they are not logged in."""
    for options, message in (
        (ExportOptions(push_to_hub="me/my model"), "--push-to-hub=me/my model is not the name of a repository"),
        (ExportOptions(push_to_hub="me/model"), "needs a login: run `hf auth login`, or set HF_TOKEN"),
        (ExportOptions(private=True), "--private is about the repository of --push-to-hub REPO"),
    ):
        monkeypatch.setattr(push, "get_token", lambda: None)
        with pytest.raises(UserError, match=message):
            export_run(tmp_path / "run", tmp_path / "out", options=options)
    assert not list(tmp_path.iterdir())

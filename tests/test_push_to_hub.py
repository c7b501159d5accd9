"""push_to_hub uploads what a checkpoint holds: transformers' client against a hub made here."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
import torch

from llada_plugins import load_model

UPLOAD = """
import sys
import llada_plugins.hf
from transformers import AutoModel, AutoTokenizer

model = AutoModel.from_pretrained(sys.argv[1], dtype="float32")
if sys.argv[2] == "push":
    model.push_to_hub("me/model", token="hf_0")
else:
    model.save_pretrained(sys.argv[3], push_to_hub=True, repo_id="me/model", token="hf_0")
"""


class Hub(BaseHTTPRequestHandler):
    """What an upload asks of the hub; every file comes within its commit."""

    files: dict[str, bytes]

    def do_GET(self) -> None:
        self._answer({}, 404)  # no README yet

    do_HEAD = do_GET

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.endswith("/api/repos/create"):
            url = f"http://{self.headers['Host']}/me/model"
            self._answer({"url": url, "name": "me/model"})
        elif self.path.endswith("/api/validate-yaml"):
            self._answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            names = [each["path"] for each in json.loads(body)["files"]]
            modes = [
                {"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names
            ]
            self._answer({"files": modes})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.files[line["value"]["path"]] = content
            url = f"http://{self.headers['Host']}/me/model/commit/0"
            self._answer({"commitUrl": url, "commitOid": "0" * 40, "hookOutput": ""})
        else:
            self._answer({"error": self.path}, 404)

    def _answer(self, record: dict, status: int = 200) -> None:
        text = json.dumps(record).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        """Nothing: the test says what went wrong."""


@pytest.fixture
def hub() -> Iterator[tuple[str, dict[str, bytes]]]:
    """The address of a hub, and the files that it was given."""
    handler = type("GivenHub", (Hub,), {"files": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", handler.files
    server.shutdown()
    server.server_close()


@pytest.mark.slow
@pytest.mark.parametrize("way", ("push", "save"))
def test_what_is_pushed_loads_and_keeps_the_auto_map_and_its_code(
    tiny_checkpoint, tmp_path, hub, way
):
    address, files = hub
    base = shutil.copytree(tiny_checkpoint, tmp_path / "base")
    said = json.loads((base / "config.json").read_text())
    said["auto_map"] = {"AutoModel": "modeling.Model"}
    (base / "config.json").write_text(json.dumps(said))
    (base / "modeling.py").write_text("raise SystemExit")
    offline = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_ENDPOINT")
    kept = {name: value for name, value in os.environ.items() if name not in offline}
    command = [sys.executable, "-W", "ignore", "-c", UPLOAD, str(base), way, str(tmp_path / "out")]
    path = os.pathsep.join([*os.environ.get("PYTHONPATH", "").split(os.pathsep), os.getcwd()])
    environment = {**kept, "HF_ENDPOINT": address, "HF_HOME": str(tmp_path), "PYTHONPATH": path}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    pushed = tmp_path / "pushed"
    pushed.mkdir()
    for name, content in files.items():
        (pushed / name).write_bytes(content)
    assert json.loads((pushed / "config.json").read_text())["auto_map"] == said["auto_map"]
    assert (pushed / "modeling.py").read_text() == "raise SystemExit"
    ids = torch.arange(18).view(2, 9)
    before, after = (load_model(each, device="cpu", dtype="float32") for each in (base, pushed))
    assert torch.equal(before(ids), after(ids))

"""Publishing on the Hugging Face hub, against a stand-in of its interface on this machine."""

import base64
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import ClassVar

import pytest
from huggingface_hub import ModelCard, constants
from peft import LoraConfig, get_peft_model

from ssvd import load_model

NAME = "somebody/children"
COMMIT = "c" * 40


@pytest.fixture(scope="module")
def adapter(embedded, tmp_path_factory):
    """An adapter that changes what is heard."""
    network = get_peft_model(
        load_model(embedded).module, LoraConfig(r=4, target_modules=["fc1"], init_lora_weights=False)
    )
    folder = tmp_path_factory.mktemp("adapter")
    network.save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module")
def results(adapter, tmp_path_factory):
    """What an evaluation of the adapter wrote."""
    row = {"corpus": "children", "normaliser": "english", "utterances": 200, "wer_interval": None}
    rows = [row | {"system": "base", "wer": 0.31}]
    rows += [row | {"system": str(adapter), "wer": 0.198, "wer_interval": [0.134, 0.283]}]
    path = tmp_path_factory.mktemp("evaluation") / "result.json"
    path.write_text(json.dumps({"model": "m", "results": rows}))
    return path


PUBLISH = ["--license", "apache-2.0", "--base-model", "openai/whisper-tiny.en", "--language", "en"]


def test_dry_run_shows_files_and_a_card_that_the_hub_understands(ssvd, adapter, results, embedded):
    code, out, err = ssvd("push", adapter, NAME, *PUBLISH, "--results", results, "--dry-run")
    assert code == 0, err
    files, card = out.split("---\n", 1)
    assert [line.split()[0] for line in files.splitlines()] == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    data = ModelCard(f"---\n{card}").data
    assert (data.base_model, data.license, data.language) == ("openai/whisper-tiny.en", "apache-2.0", "en")
    assert (data.library_name, data.pipeline_tag) == ("peft", "automatic-speech-recognition")
    (result,) = data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_name) == ("wer", 19.8, "children")
    assert result.metric_args == {"normaliser": "english", "interval_95": [13.4, 28.3]}
    assert "| children | 200 | 31.0 % | 19.8 % (13.4 .. 28.3) |" in card
    assert str(embedded) not in out and str(adapter) not in out


def test_what_cannot_be_published_is_told(refused, ssvd, adapter, results, tmp_path, monkeypatch):
    monkeypatch.setattr("ssvd.push.get_token", lambda: None)
    assert "There is no token for the hub" in refused("push", adapter, NAME, *PUBLISH)
    dry = [*PUBLISH, "--dry-run"]
    assert "cannot be the name of a repository" in refused("push", adapter, "no/such/name", *dry)
    assert "is a folder of this machine: name it" in refused("push", adapter, NAME, "--license", "mit", "--dry-run")
    assert "knows no language 'English'" in refused("push", adapter, NAME, *dry, "--language", "English")
    other = tmp_path / "other.json"
    other.write_text(results.read_text().replace(adapter.name, "another"))
    assert "holds no results of" in refused("push", adapter, NAME, *dry, "--results", other)
    other.write_text("[]")
    assert "does not hold the results of an evaluation" in refused("push", adapter, NAME, *dry, "--results", other)
    code, _, err = ssvd("push", adapter, NAME)
    assert code == 2 and "--license" in err


def test_scaled_run_is_published_merged(refused, ssvd, adapter, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    for file in adapter.iterdir():
        (run / file.name).write_bytes(file.read_bytes())
    (run / "scale.json").write_text('{"scale": 0.5}')
    assert "send the merged model" in refused("push", run, NAME, *PUBLISH, "--dry-run")
    code, out, err = ssvd("push", run, NAME, *PUBLISH, "--dry-run", "--merged")
    assert code == 0 and "model.safetensors" in out and "library_name: transformers" in out, err


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as creating, uploading to, and downloading from one repository takes."""

    files: ClassVar[dict[str, bytes]] = {}
    asked: ClassVar[list[str]] = []

    def _answer(self, value, code=200):
        body = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.asked.append(self.path)
        if self.headers["Authorization"] != "Bearer secret":
            self._answer({"error": "who are you?"}, 401)
        elif self.path == "/api/repos/create":
            self._answer({"url": f"http://{self.headers['Host']}/{NAME}", "name": NAME, "id": NAME})
        elif self.path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif self.path.startswith(f"/api/models/{NAME}/preupload"):
            paths = [file["path"] for file in json.loads(body)["files"]]
            self._answer({"files": [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in paths]})
        else:
            assert self.path.startswith(f"/api/models/{NAME}/commit"), self.path
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            address = f"http://{self.headers['Host']}/{NAME}/commit/{COMMIT}"
            self._answer({"success": True, "commitOid": COMMIT, "commitUrl": address})

    def do_GET(self, body=True):
        name = self.path.partition("?")[0].rsplit("/", 1)[-1]
        if self.path.startswith(f"/api/models/{NAME}/tree"):
            rows = [{"type": "file", "path": path, "size": len(data), "oid": "0"} for path, data in self.files.items()]
            self._answer(rows)
        elif self.path.startswith(f"/api/models/{NAME}"):
            self._answer({"id": NAME, "sha": COMMIT, "siblings": [{"rfilename": path} for path in self.files]})
        elif "/resolve/" in self.path and name in self.files:
            self.send_response(200)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hash(self.files[name])}"')
            self.send_header("Content-Length", str(len(self.files[name])))
            self.end_headers()
            if body:
                self.wfile.write(self.files[name])
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound" if NAME in self.path else "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def do_HEAD(self):
        self.do_GET(body=False)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Lets the hub's client know no hub but the stand-in."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    for name, value in {
        "ENDPOINT": address,
        "HUGGINGFACE_CO_URL_TEMPLATE": address + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("HF_TOKEN", "secret")
    yield
    server.shutdown()
    server.server_close()


def test_adapter_is_read_back_from_the_hub_by_its_name(hub, ssvd, adapter, embedded, tmp_path):
    code, out, err = ssvd("push", adapter, NAME, *PUBLISH)
    assert code == 0 and f"/{NAME}" in out, err
    assert Hub.files.keys() == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert "/api/validate-yaml" in Hub.asked
    assert json.loads(Hub.files["adapter_config.json"])["base_model_name_or_path"] == "openai/whisper-tiny.en"
    for content in (Hub.files["README.md"], Hub.files["adapter_config.json"]):
        assert str(embedded).encode() not in content and str(Path.home()).encode() not in content
    merged = tmp_path / "merged"
    code, out, err = ssvd("merge", embedded, NAME, merged)
    assert code == 0, err
    assert ssvd("merge", embedded, adapter, tmp_path / "local")[0] == 0
    assert (merged / "model.safetensors").read_bytes() == (tmp_path / "local" / "model.safetensors").read_bytes()


def test_hub_that_refuses_or_is_out_of_reach_is_told(hub, refused, adapter, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "wrong")
    sentence = refused("push", adapter, NAME, *PUBLISH)
    assert f"The hub did not take {NAME}" in sentence and "401" in sentence
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert f"The hub did not take {NAME}" in refused("push", adapter, NAME, *PUBLISH)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "switched off by the environment variable HF_HUB_OFFLINE" in refused("push", adapter, NAME, *PUBLISH)

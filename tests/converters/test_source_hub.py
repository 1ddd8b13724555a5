"""`--weights hf:...`: from a cache laid out as the hub does, and from a hub on this machine."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from cli_tools import TINY, edgevit, write_model
from helpers import randomise
from huggingface_hub import constants
from safetensors.torch import save_file

from converters.errors import ConvertError
from converters.refs.hub import fetch
from converters.source import load_source, state_digest
from edgevit.models import ModelError, create_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OLDER = "fedcba9876543210fedcba9876543210fedcba98"
REPO = "someone/shvit.small-6"


def weights(seed: int = 3) -> torch.nn.Module:
    return randomise(create_model("shvit_s1", num_classes=6), seed)


def cached(
    cache: Path, files: dict[str, Path], *, commit: str = COMMIT, revision: str = "main"
) -> Path:
    """Put files into the cache as huggingface_hub does: blobs by digest, links to them, a ref."""
    folder = cache / f"models--{REPO.replace('/', '--')}"
    for part in ("blobs", "refs", f"snapshots/{commit}"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for name, file in files.items():
        data = file.read_bytes()
        blob = folder / "blobs" / hashlib.sha256(data).hexdigest()
        blob.write_bytes(data)
        link = folder / "snapshots" / commit / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    (folder / "refs" / revision).write_text(commit)
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no network."""
    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return folder


@pytest.fixture
def safetensors(tmp_path: Path) -> Path:
    save_file(weights().state_dict(), tmp_path / "w.safetensors")
    return tmp_path / "w.safetensors"


@pytest.fixture
def pickled(tmp_path: Path) -> Path:
    torch.save({"state_dict": weights(4).state_dict()}, tmp_path / "w.bin")
    return tmp_path / "w.bin"


def config(tmp_path: Path, **said: object) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(said))
    return tmp_path / "config.json"


# From the cache


def test_safetensors_come_first(cache: Path, safetensors: Path, pickled: Path) -> None:
    cached(cache, {"model.safetensors": safetensors, "pytorch_model.bin": pickled})
    source = load_source("shvit_s1", weights=f"hf:{REPO}", classes=6)
    assert source.weights == f"hf:{REPO}@{COMMIT}/model.safetensors"
    assert source.trained and source.notes == ()
    assert source.weights_sha256 == state_digest(weights(3))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model.pth"])
def test_else_a_pickle_with_weights_only(cache: Path, pickled: Path, name: str) -> None:
    cached(cache, {name: pickled})
    source = load_source("shvit_s1", weights=f"hf:{REPO}", classes=6)
    assert source.weights == f"hf:{REPO}@{COMMIT}/{name}"
    assert source.weights_sha256 == state_digest(weights(4))


def test_a_named_file_in_a_folder_of_a_revision(
    cache: Path, safetensors: Path, tmp_path: Path
) -> None:
    save_file(weights(5).state_dict(), tmp_path / "5.safetensors")
    cached(cache, {"best/ema.safetensors": safetensors})
    other = {"best/ema.safetensors": tmp_path / "5.safetensors"}
    cached(cache, other, commit=OLDER, revision="v1.0")
    for revision, commit, seed in (("", COMMIT, 3), ("@v1.0", OLDER, 5), (f"@{OLDER}", OLDER, 5)):
        ref = f"hf:{REPO}{revision}/best/ema.safetensors"
        source = load_source("shvit_s1", weights=ref, classes=6)
        assert source.weights == f"hf:{REPO}@{commit}/best/ema.safetensors"
        assert source.weights_sha256 == state_digest(weights(seed))


def test_what_the_config_says_helps_the_error(
    cache: Path, safetensors: Path, tmp_path: Path
) -> None:
    said = config(tmp_path, architecture="shvit_s1", num_classes=6, pretrained_cfg={"x": 1})
    cached(cache, {"model.safetensors": safetensors, "config.json": said})
    assert load_source("shvit_s1", weights=f"hf:{REPO}", classes=6).num_classes == 6
    with pytest.raises(ConvertError) as info:
        load_source("shvit_s2", weights=f"hf:{REPO}")
    assert "does not fit the model" in str(info.value)
    assert f"config.json of hf:{REPO} says: shvit_s1, 6 classes" in str(info.value)
    assert info.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"id2label": {"0": "a", "1": "b"}}', "says: 2 classes"),
        ("{}", ""),
        ("[1]", ""),
        ("no json", ""),
        ('{"num_classes": "many"}', ""),
    ],
)
def test_a_config_that_says_little(
    cache: Path, safetensors: Path, tmp_path: Path, text: str, says: str
) -> None:
    (tmp_path / "c").write_text(text)
    cached(cache, {"model.safetensors": safetensors, "config.json": tmp_path / "c"})
    config = fetch(f"hf:{REPO}").config
    assert config.endswith(says) and bool(config) == bool(says)


def test_a_cache_without_it(cache: Path, safetensors: Path) -> None:
    for ref in (f"hf:{REPO}", f"hf:{REPO}@v2/model.safetensors"):
        with pytest.raises(ConvertError) as info:
            load_source("shvit_s1", weights=ref)
        text = str(info.value)
        assert "HF_HUB_OFFLINE is set" in text and str(cache) in text
        assert "hf download someone/shvit.small-6" in text and "to --weights" in text
    cached(cache, {"other.safetensors": safetensors})
    with pytest.raises(ConvertError, match=r"holds no model\.safetensors or pytorch_model\.bin or"):
        load_source("shvit_s1", weights=f"hf:{REPO}")


@pytest.mark.parametrize("ref", ["hf:", "hf:name", "hf:a/b@", "hf:a/b/", "hf://a/b", "hf:a b/c"])
def test_refs_that_are_none(ref: str) -> None:
    with pytest.raises(ConvertError, match=r"expected hf:ORG/NAME, hf:ORG/NAME/FILE or"):
        load_source("shvit_s1", weights=ref)


def test_files_that_are_none(cache: Path) -> None:
    with pytest.raises(ConvertError, match=r"ends in \.safetensors, \.bin, \.pth, \.pt"):
        load_source("shvit_s1", weights=f"hf:{REPO}/README.md")
    assert cache
    with pytest.raises(ConvertError, match="is no name of a repository"):
        load_source("shvit_s1", weights="hf:a--b/c..d")


def test_code_in_a_checkpoint_of_the_hub(cache: Path, tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self):
            return Path.mkdir, (tmp_path / "it ran",)

    torch.save({"head": Payload()}, tmp_path / "evil")
    cached(cache, {"pytorch_model.pth": tmp_path / "evil"})
    with pytest.raises(ModelError, match="wants to run code"):
        load_source("shvit_s1", weights=f"hf:{REPO}")
    assert not (tmp_path / "it ran").exists()


# From a hub


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's protocol as a download of one file and a listing take."""

    files: dict[str, bytes] = {}  # noqa: RUF012
    asked: list[str] = []  # noqa: RUF012
    status = 200
    resolve_status = 200

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        self.asked.append(f"{self.command} {self.path}")
        path = self.path.split("?")[0]
        name = path.removeprefix(f"/{REPO}/resolve/main/")
        if path in (f"/api/models/{REPO}", f"/api/models/{REPO}/revision/main"):
            siblings = [{"rfilename": file} for file in self.files]
            found = json.dumps({"id": REPO, "sha": COMMIT, "siblings": siblings}).encode()
            self.send(self.status, found, {"Content-Type": "application/json"}, body)
        elif f"/{REPO}/" not in f"{path}/":
            self.send(404, b"", {"X-Error-Code": "RepoNotFound"}, body)
        elif "/resolve/main/" not in path:
            self.send(404, b"", {"X-Error-Code": "RevisionNotFound"}, body)
        elif name not in self.files:
            headers = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}
            self.send(404, b"", headers, body)
        else:
            data = self.files[name]
            etag = hashlib.sha256(data).hexdigest()
            headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}
            self.send(self.resolve_status, data, headers, body)

    def send(self, status: int, data: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        """Nothing on stderr."""


@pytest.fixture
def hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    """A hub on this machine, its cache empty."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    template = f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(Hub, "files", {})
    monkeypatch.setattr(Hub, "asked", [])
    assert cache.is_dir()
    yield Hub
    server.shutdown()
    server.server_close()


def test_download_and_again_without_a_network(
    hub: type[Hub], pickled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.files |= {"pytorch_model.pth": pickled.read_bytes()}
    source = load_source("shvit_s1", weights=f"hf:{REPO}", classes=6)
    assert source.weights == f"hf:{REPO}@{COMMIT}/pytorch_model.pth"
    assert source.weights_sha256 == state_digest(weights(4))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(hub.asked)
    assert load_source("shvit_s1", weights=f"hf:{REPO}", classes=6).weights == source.weights
    assert len(hub.asked) == asked


def test_what_a_hub_has_not(hub: type[Hub], safetensors: Path) -> None:
    hub.files |= {"ema.safetensors": safetensors.read_bytes(), "README.md": b"#"}
    with pytest.raises(
        ConvertError, match=rf"has no model\.safetensors or .*Add one: hf:{REPO}/ema"
    ):
        load_source("shvit_s1", weights=f"hf:{REPO}")
    with pytest.raises(ConvertError, match=r"has no best\.pth; it has: ema\.safetensors"):
        load_source("shvit_s1", weights=f"hf:{REPO}/best.pth")
    with pytest.raises(ConvertError, match=r"there is no repository .*/someone/else"):
        load_source("shvit_s1", weights="hf:someone/else")
    with pytest.raises(ConvertError, match=r"has no revision 'v9': name a branch"):
        load_source("shvit_s1", weights=f"hf:{REPO}@v9")


def test_a_hub_that_does_not_answer(
    hub: type[Hub], cache: Path, safetensors: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, and from the cache where it can be."""
    monkeypatch.setattr(Hub, "status", 503)
    with pytest.raises(ConvertError, match=r"the hub answers with status 503, and the cache .* no"):
        load_source("shvit_s1", weights=f"hf:{REPO}")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ConvertError, match=r"no answer from the hub \(ConnectError"):
        load_source("shvit_s1", weights=f"hf:{REPO}")
    cached(cache, {"model.safetensors": safetensors})
    assert load_source("shvit_s1", weights=f"hf:{REPO}", classes=6).trained
    assert [path for path in hub.asked if "/resolve/" in path] == []


def test_a_download_that_is_cut(hub: type[Hub], monkeypatch: pytest.MonkeyPatch) -> None:
    hub.files |= {"model.safetensors": b"x" * 1000}
    monkeypatch.setattr(Hub, "resolve_status", 403)
    with pytest.raises(ConvertError, match=r"downloading from https://huggingface\.co/someone"):
        load_source("shvit_s1", weights=f"hf:{REPO}")


def test_the_command_line_without_a_network(tmp_path: Path) -> None:
    home = write_model(tmp_path)
    env = {"HF_HUB_CACHE": str(tmp_path / "c"), "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    words = ["--to", "onnx", "-o", "out", "--weights", f"hf:{REPO}", "--json"]
    answer = edgevit("convert", TINY, *words, cwd=home, env=env)
    assert answer.code == 2
    assert answer.json()["error"].startswith(f"hf:{REPO}: HF_HUB_OFFLINE is set, and the cache ")
    assert not (home / "out").exists()

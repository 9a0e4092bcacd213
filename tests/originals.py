"""Prepare Fashion-MNIST from the original files: for the tests and for scripts/torture."""

import http.server
import shutil
import threading
from pathlib import Path

import pytest
from helpers import ORIGINALS

from plateau_train import config, data
from plateau_train.errors import DataError


class Proxy(http.server.BaseHTTPRequestHandler):
    """Answer each request with the original file of that name."""

    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        with (ORIGINALS / Path(self.path).name).open("rb") as file:
            shutil.copyfileobj(file, self.wfile)

    def log_message(self, format, *_):  # noqa: A002 (the name in the base class)
        pass


class QuietServer(http.server.ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        pass  # the probe disconnects without reading the file


def check_download(folder: Path) -> dict[str, str]:
    """Download the set through a proxy on this machine, prepare it, and return its description."""
    settings = config.DataSettings(data_dir=folder, cache_dir=folder / "cache")
    with (
        QuietServer(("127.0.0.1", 0), Proxy) as server,
        pytest.MonkeyPatch.context() as patch,
    ):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        patch.setenv("http_proxy", f"http://127.0.0.1:{server.server_port}")
        result = data.prepare(settings)
        server.shutdown()
    assert result == f"prepared fashion_mnist/3.0.1 in {folder}"
    described = data.describe(settings)
    assert "is already prepared" in data.prepare(settings, ORIGINALS)
    with pytest.raises(DataError, match="t10k-images-idx3-ubyte"):
        data.prepare(settings, folder)  # a wrong folder, although the set is prepared
    return described


def check_whole_download(folder: Path) -> None:
    """Prepare and read all images, which takes most of a minute."""
    described = check_download(folder)
    assert described["train"] == "60,000 images"
    assert described["test"] == "10,000 images"
    assert described["pixels"] == "mean 0.28604, standard deviation 0.35302, from 0 to 1"
    assert described["per class"] == "6,000 images in train, 1,000 images in test"

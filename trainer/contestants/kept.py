"""Forecasts of pysteps' methods, kept in a folder so that a second evaluation does not pay for them again.

A file's name is the SHA-256 of all that its forecast depends on; its first bytes are the SHA-256 of the rest. One that
is damaged is computed again.
"""

import hashlib
import json
import logging
import math
import os
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import blosc2
import numpy as np
import numpy.typing as npt

from ...data.errors import DataError
from ...data.store.storage import LocalStorage
from ...models.baselines.methods import Method, Window

LOG = logging.getLogger(__name__)
_FORMAT: Final = 1
"""Raised whenever `models.baselines` computes something else than before."""
_DIGEST_BYTES: Final = 32


def default_folder() -> Path:
    """Give the user's folder of forecasts: below $XDG_CACHE_HOME, or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rainspark" / "forecasts"


def key_of(method: Method, window: Window) -> str:
    """Give the SHA-256 of all that a forecast depends on: frames, mask, method, options, seed, times, pysteps."""
    try:
        pysteps = version("pysteps")
    except PackageNotFoundError:
        pysteps = "none"
    last = slice(-method.frames_in, None)
    rain_thw = np.ascontiguousarray(window.rain_mmh_thw[last], np.float32)
    stated = {
        "format": _FORMAT,
        "pysteps": pysteps,
        "kind": method.kind,
        "options": asdict(method),  # type: ignore[call-overload]
        "shape": rain_thw.shape,
        # Where nothing is drawn, a seed changes nothing.
        "seed": window.seed if method.gives == "members" else 0,
        "issue_s": window.issue_s,
        "frames_out": window.frames_out,
        "pixel_km": window.pixel_km,
        "step_min": window.step_min,
        "thresholds_mmh": window.thresholds_mmh if method.gives == "probabilities" else (),
    }
    digest = hashlib.sha256(json.dumps(stated, sort_keys=True).encode())
    digest.update(rain_thw.tobytes())
    if window.valid_thw is not None and not window.valid_thw[last].all():
        digest.update(np.ascontiguousarray(window.valid_thw[last], bool).tobytes())
    return digest.hexdigest()


class KeptForecasts:
    """A folder of forecasts.

    Args:
        folder: None: nothing is kept.
    """

    def __init__(self, folder: Path | None) -> None:
        self._storage = None if folder is None else LocalStorage(folder)
        self._has_failed = False

    def read(self, key: str) -> npt.NDArray[np.float32] | None:
        """Read a forecast; None where it is not there, or damaged."""
        name = _name(key)
        if self._storage is None:
            return None
        try:
            if not self._storage.exists(name):
                return None
            return _decoded(self._storage.read(name))
        # Blosc2 raises several kinds, depending on the byte that is wrong.
        except Exception as error:
            LOG.warning("%s/%s is damaged, and computed again (%s)", self._storage.url, name, error)
            return None

    def write(self, key: str, forecast: npt.NDArray[np.float32]) -> None:
        """Keep a forecast; a folder that takes nothing is reported once, and the work goes on."""
        if self._storage is None or self._has_failed:
            return
        try:
            self._storage.write(_name(key), _encoded(forecast))
        except DataError as error:
            self._has_failed = True
            LOG.warning("forecasts of pysteps are not kept: %s; --cache FOLDER says where, --cache none nowhere", error)


def _name(key: str) -> str:
    return f"{key[:2]}/{key}.forecast"


def _encoded(forecast: npt.NDArray[np.float32]) -> bytes:
    # A chunk an entry of the first axis: Blosc2 takes 2 GB at most.
    settings: dict[str, Any] = {"codec": blosc2.Codec.ZSTD, "clevel": 3, "typesize": 4}
    chunks = [blosc2.compress2(np.ascontiguousarray(part), **settings) for part in forecast]
    header = json.dumps({"shape": forecast.shape, "chunks": [len(chunk) for chunk in chunks]}).encode()
    body = b"".join([len(header).to_bytes(4, "little"), header, *chunks])
    return hashlib.sha256(body).digest() + body


def _decoded(data: bytes) -> npt.NDArray[np.float32]:
    body = data[_DIGEST_BYTES:]
    if hashlib.sha256(body).digest() != data[:_DIGEST_BYTES]:
        raise DataError("its bytes are not those that were written")
    start = 4 + int.from_bytes(body[:4], "little")
    header = json.loads(body[4:start])
    shape = tuple(header["shape"])
    parts = []
    for num_bytes in header["chunks"]:
        decoded = blosc2.decompress2(body[start : start + num_bytes])
        if len(decoded) != 4 * math.prod(shape[1:]):
            raise DataError(f"a chunk of {len(decoded)} bytes; expected {4 * math.prod(shape[1:])}")
        parts.append(np.frombuffer(decoded, np.float32).reshape(shape[1:]))
        start += num_bytes
    return np.stack(parts)

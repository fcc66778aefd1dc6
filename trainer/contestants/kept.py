"""Forecasts of pysteps' methods, kept in a folder so that a second evaluation does not pay for them again.

A file's name is the SHA-256 of all that its forecast depends on; its first bytes are the SHA-256 of the rest. One that
is damaged is computed again.
"""

import hashlib
import json
import logging
import math
import os
from contextlib import suppress
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
DEFAULT_LIMIT_BYTES: Final = 10 * 10**9
"""What the user's own cache folder may hold: homes have quotas."""


def default_folder() -> Path:
    """Give the user's folder of forecasts: below $XDG_CACHE_HOME, or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rainspark" / "forecasts"


def key_of(method: Method, window: Window) -> str:
    """Give the SHA-256 of all that a forecast depends on: frames, mask, method, options, seed, times, pysteps."""
    try:
        pysteps = version("pysteps")
    except PackageNotFoundError:
        pysteps = "none"

    # Frames that the method does not take change nothing.
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

    # A mask that hides nothing counts as none, so that both give one name.
    digest = hashlib.sha256(json.dumps(stated, sort_keys=True).encode())
    digest.update(rain_thw.tobytes())
    if window.valid_thw is not None and not window.valid_thw[last].all():
        digest.update(np.ascontiguousarray(window.valid_thw[last], bool).tobytes())
    return digest.hexdigest()


class KeptForecasts:
    """A folder of forecasts.

    Args:
        folder: None: nothing is kept.
        limit_bytes: Nothing more is kept once the folder holds as much; None: no limit.
    """

    def __init__(self, folder: Path | None, limit_bytes: int | None = None) -> None:
        self._storage = None if folder is None else LocalStorage(folder)
        self._limit_bytes = limit_bytes
        # Measured before the first forecast is written, and counted from there on.
        self._held_bytes: int | None = None
        self._has_ended = False

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
        """Keep a forecast; a folder that takes nothing or is full is reported once, and the work goes on."""
        if self._storage is None or self._has_ended:
            return
        data = _encoded(forecast)
        try:
            if self._held_bytes is None:
                self._held_bytes = _size(self._storage)
            self._has_ended = self._limit_bytes is not None and self._held_bytes + len(data) > self._limit_bytes
            if self._has_ended:
                LOG.warning(
                    "forecasts of pysteps are kept no longer: %s holds %.3g of at most %.3g GB; empty it, or name a "
                    "folder without a limit by --cache FOLDER",
                    *(self._storage.url, self._held_bytes / 1e9, (self._limit_bytes or 0) / 1e9),
                )
                return
            self._storage.write(_name(key), data)
            self._held_bytes += len(data)
        except DataError as error:
            self._has_ended = True
            LOG.warning("forecasts of pysteps are not kept: %s; --cache FOLDER says where, --cache none nowhere", error)

    def report(self) -> None:
        """Log where forecasts were kept and how much is there, of all processes; nothing where none was."""
        if self._storage is not None and self._held_bytes is not None:
            # A folder that cannot be listed is no reason to fail after the work.
            with suppress(DataError):
                held_mb = _size(self._storage) / 1e6
                url = self._storage.url
                LOG.info("forecasts of pysteps are kept for the next time: %s holds %.3g MB", url, held_mb)


def _size(storage: LocalStorage) -> int:
    return sum(storage.size(name) for name in storage.names())


def _name(key: str) -> str:
    return f"{key[:2]}/{key}.forecast"


def _encoded(forecast: npt.NDArray[np.float32]) -> bytes:
    # A chunk an entry of the first axis: Blosc2 takes 2 GB at most.
    settings: dict[str, Any] = {"codec": blosc2.Codec.ZSTD, "clevel": 3, "typesize": 4}
    chunks = [blosc2.compress2(np.ascontiguousarray(along), **settings) for along in forecast]
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

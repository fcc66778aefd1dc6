"""Hostile files of every kind that a reader opens: code that would run, places outside, bombs, text for terminals."""

import dataclasses
import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import blosc2
import h5py
import numpy as np
import torch

from rainspark.data.shards.index import Index
from rainspark.models.weights.manifest import write_manifest
from tests.data.archives import whole_origin
from tests.data.radar_files import (
    FIRST_S,
    change,
    odim_name,
    random_counts,
    replace_by_link,
    replace_by_virtual,
    replace_dataset,
    replace_image,
    set_attribute,
    write_collected,
    write_odim_series,
    write_series,
)
from tests.data.sound_archives import resign, rewrite, small_archive, with_entry

NAME = "RAD_NL25_RAP_5min_202001010000"
ESCAPE = "\x1b[31m\x07\u202e"
TOUCH = "touch {canary}"


@dataclass(frozen=True)
class Sample:
    """One hostile input: what reads it, and whether it must be refused (else reading it must only do no harm)."""

    name: str
    reader: str
    path: Path
    kind: str = "refused"


class Bomb:
    """Unpickling this runs a command."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        """Say how."""
        return os.system, (TOUCH.format(canary=self.canary),)


class Maker:
    """Makes samples, each in a folder of its own."""

    def __init__(self, root: Path, outside: Path, canary: Path) -> None:
        self.root, self.outside, self.canary = root, outside, canary
        self.samples: list[Sample] = []
        self.payload = pickle.dumps(Bomb(canary), protocol=2)

    def folder(self, name: str) -> Path:
        """Make a sample's folder."""
        folder = self.root / name
        folder.mkdir(parents=True)
        return folder

    def file(self, name: str, reader: str, file: str, data: bytes, kind: str = "refused") -> Path:
        """Make a sample of one file."""
        path = self.folder(name) / file
        path.write_bytes(data)
        self.samples.append(Sample(name, reader, path, kind))
        return path


def pickles(make: Maker) -> None:
    """Pickles under every extension."""
    for ending in ("h5", "hdf5", "hdf", "npy", "npz", "pth", "pt", "tar", "zip", "json", "yaml", "safetensors", "nc"):
        make.file(f"pickle as {ending}, knmi", "knmi", f"{NAME}.{ending}", make.payload)
    make.file("pickle as hdf, odim", "odim", odim_name(FIRST_S), make.payload)
    make.file("pickle as h5, smaat", "smaat", "collected.h5", make.payload)
    for ending in ("pth", "pt", "safetensors"):
        make.file(f"pickle as {ending}, weights", "weights", f"w.{ending}", make.payload)
    saved = io.BytesIO()
    torch.save({"a": torch.zeros(2), "b": Bomb(make.canary)}, saved)
    make.file("torch file with code", "weights", "w.pth", saved.getvalue())
    old = io.BytesIO()
    torch.save({"a": Bomb(make.canary)}, old, _use_new_zipfile_serialization=False)
    make.file("old torch file with code", "weights", "w.pt", old.getvalue())
    make.file("pickle as yaml, config", "config", "c.yaml", make.payload)
    buffer = io.BytesIO()
    np.save(buffer, np.array([Bomb(make.canary)], object))
    make.file("npy of objects, knmi", "knmi", f"{NAME}.npy", buffer.getvalue())


def tar_of(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    """Write a tar."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for info, data in members:
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    """Describe a tar member."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def archives(make: Maker, frame: bytes) -> None:
    """Tars and zips with links, devices, names that lead out, and bombs."""
    secret = str(make.outside / f"{NAME}.h5")
    # Links, devices, a pipe, a folder (which leaves no frame), a sparse, a continued and an unknown one.
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, b"3", b"4", b"6", b"5", b"S", b"7", b"Z"):
        data = tar_of((member(f"{NAME}.h5", kind, secret), b""))
        make.file(f"tar with a member of kind {kind.decode()}", "knmi", "day.tar", data)
    names = {"absolute": secret, "climbing": f"../../outside/{NAME}.h5", "hidden": f"a/../../{NAME}.h5"}
    for name, path in {**names, "for terminals": f"{ESCAPE}{NAME}.h5"}.items():
        make.file(f"tar with a name that is {name}", "knmi", "day.tar", tar_of((member(path), frame)))
        zipped = io.BytesIO()
        with zipfile.ZipFile(zipped, "w") as file:
            file.writestr(path, frame)
        make.file(f"zip with a name that is {name}", "knmi", "year.zip", zipped.getvalue())
    header = member(f"{NAME}.h5")
    header.size = 2**40
    make.file("tar that claims a terabyte", "knmi", "day.tar", header.tobuf(format=tarfile.GNU_FORMAT) + bytes(1024))
    long = member("././@LongLink", tarfile.GNUTYPE_LONGNAME)
    long.size = 2**36
    make.file("tar with a name of 64 GB", "knmi", "day.tar", long.tobuf(format=tarfile.GNU_FORMAT) + bytes(1024))
    pax = tar_of((member(f"{NAME}.h5"), frame))
    make.file("tar inside a tar", "knmi", "day.tar", tar_of((member("inner.tar"), pax)))
    make.file("gzipped tar", "knmi", "day.tar.gz", b"\x1f\x8b\x08" + bytes(100))
    linked = io.BytesIO()
    with zipfile.ZipFile(linked, "w") as file:
        info = zipfile.ZipInfo(f"{NAME}.h5")
        info.external_attr = 0o120777 << 16
        file.writestr(info, secret)
    make.file("zip with a symbolic link", "knmi", "year.zip", linked.getvalue())
    bomb = io.BytesIO()
    with (
        zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file,
        file.open(f"{NAME}.h5", "w") as zeros,
    ):
        for _ in range(320):
            zeros.write(bytes(2**20))
    make.file("zip bomb", "knmi", "year.zip", bomb.getvalue())
    make.file(
        "zip bomb that lies",
        "knmi",
        "year.zip",
        bomb.getvalue().replace(struct.pack("<I", 320 * 2**20), struct.pack("<I", 4000)),
    )


def hdf5(make: Maker) -> None:
    """HDF5 files that point outside, would run formulas, or unpack for ever."""
    external = str(make.outside / f"{NAME}.h5")

    def sample(name: str, edit: Callable[[Any], None]) -> None:
        folder = make.folder(name)
        (path,) = write_series(folder, [2])
        change(path, edit)
        make.samples.append(Sample(name, "knmi", path))

    for place in ("image1/image_data", "image1", "overview", "geographic", "image1/calibration"):
        sample(
            f"hdf5, {place} is an external link".replace("/", " "),
            replace_by_link(place, h5py.ExternalLink(external, place)),
        )
    sample("hdf5, soft link", replace_by_link("image1/image_data", h5py.SoftLink("/elsewhere")))
    raw = [(external, 0, h5py.h5f.UNLIMITED)]
    sample("hdf5, external storage", replace_image(shape=(12, 10), dtype="u2", external=raw))
    sample("hdf5, virtual dataset", replace_by_virtual("image1/image_data", external))
    sample("hdf5, huge", replace_image(shape=(2**20, 2**20), dtype="u2", chunks=(1024, 1024)))
    sample("hdf5, gzip bomb", bombed)
    sample(
        "hdf5, text in place of counts",
        replace_image(data=np.array([b"x"] * 120, object).reshape(12, 10), dtype=h5py.string_dtype()),
    )
    sample("hdf5, references", replace_image(shape=(12, 10), dtype=h5py.ref_dtype))
    code = f"GEO=__import__('os').system('{TOUCH.format(canary=make.canary)}')*PV"
    for number, formula in enumerate(
        (code, "GEO=0.01*PV+0.0;import os", "GEO=PV**9**9**9", "GEO=1e400*PV", ESCAPE * 50)
    ):
        sample(
            f"hdf5, formula {number}",
            set_attribute("image1/calibration", "calibration_formulas", np.bytes_(formula.encode())),
        )
    sample("hdf5, product for terminals", set_attribute("overview", "product_group_name", np.bytes_(ESCAPE.encode())))
    sample(
        "hdf5, projection for terminals",
        set_attribute("geographic/map_projection", "projection_proj4_params", np.bytes_(ESCAPE.encode())),
    )
    edits: dict[str, Callable[[str], Callable[[Any], None]]] = {
        "link": lambda name: replace_by_link(name, h5py.ExternalLink(external, "image1/image_data")),
        "storage": lambda name: replace_dataset(name, shape=(4, 8, 8), dtype="f4", external=raw),
        "values": lambda name: replace_by_virtual(name, external),
    }
    for how, edit_of in edits.items():
        (path,) = write_odim_series(make.folder(f"odim, external {how}"), [2])
        change(path, edit_of("dataset1/data1/data"))
        make.samples.append(Sample(f"odim, external {how}", "odim", path))
        path = collected(make.folder(f"smaat, external {how}"))
        change(path, edit_of("train/images"))
        make.samples.append(Sample(f"smaat, external {how}", "smaat", path))


def collected(folder: Path) -> Path:
    """Write a small collected file."""
    times = FIRST_S + 300 * np.arange(4)
    frames = np.stack([random_counts(i, 8, 8) % 4000 for i in range(4)])
    write_collected(folder / "collected.h5", {"train": (frames, times), "test": (frames, times + 6000)})
    return folder / "collected.h5"


def bombed(file: Any) -> None:
    """Store a chunk of 240 bytes that goes on for 320 MiB."""
    del file["image1/image_data"]
    image = file.create_dataset("image1/image_data", shape=(12, 10), dtype="u2", chunks=(12, 10), compression="gzip")
    packer = zlib.compressobj(1)
    data = b"".join(packer.compress(bytes(2**20)) for _ in range(320)) + packer.flush()
    image.id.write_direct_chunk((0, 0), data)


def shards(make: Maker) -> None:
    """Packed archives whose index or frames were made by somebody else."""

    def archive(name: str) -> tuple[Path, Index]:
        folder = make.folder(name) / "shards"
        make.samples.append(Sample(name, "archive", folder))
        return folder, small_archive(folder)

    indexes(make, archive)
    linked(make, archive)

    # Of the first frame, by the byte of its header: what asks Blosc2 for more than its bytes. -1: KEY.json.
    edits: dict[str, tuple[int, bytes]] = {
        "json member is a pickle": (-1, make.payload),
        "frames member is a pickle": (0, make.payload),
        "blosc2, lazy": (31, bytes([0b1000])),
        "blosc2, dictionary": (31, bytes([1])),
        "blosc2, uninitialised": (31, bytes([0x40])),
        "blosc2, user's filter": (16, bytes([160])),
        "blosc2, python's filter": (21, bytes([35])),
        "blosc2, user's codec": (22, bytes([160])),
        "blosc2, codec of the super-chunk": (2, bytes([0b1110_0101])),
        "blosc2, wide type": (3, bytes([8])),
        "blosc2, another version": (0, bytes([2])),
        "blosc2, nbytes beyond all": (4, struct.pack("<i", 2**31 - 1)),
        "blosc2, negative nbytes": (4, struct.pack("<i", -1)),
        "blosc2, cbytes beyond all": (12, struct.pack("<i", 2**31 - 1)),
        "blosc2 array in place of a frame": (0, blosc2.asarray(np.zeros((6, 8), np.uint16)).to_cframe()[:60]),
    }
    for name, (at, raw) in edits.items():
        folder, index = archive(name)
        entry = index.sequences[0]
        first = entry.json_offset if at < 0 else entry.frames_offset + at
        resign(folder, index, 0, partial(overwrite, first=first - entry.offset, raw=raw))


def overwrite(data: bytearray, first: int, raw: bytes) -> None:
    """Put other bytes in the place of some."""
    data[first : first + len(raw)] = raw


Archive = Callable[[str], tuple[Path, Index]]
"""Makes a sample of a sound archive, for its files to be changed."""


def indexes(make: Maker, archive: Archive) -> None:
    """Indexes that are something else, or say what cannot be."""
    texts = {
        "a pickle": make.payload,
        "deep": b"[" * 200_000,
        "deep objects": b'{"a":' * 100_000,
        "empty": b"",
        "not a number": b"NaN",
        "a number beyond all": b"[" + b"9" * 5000 + b"]",
        "bytes": bytes(range(128, 256)),
        "text for terminals": ESCAPE.encode(),
        "a flood of wrong values": b'{"sequences":[' + b"7," * 2_000_000 + b"7]}",
        "a flood of keys": b"{" + b",".join(b'"%d":7' % number for number in range(200_000)) + b"}",
    }
    for name, data in texts.items():
        folder, _ = archive(f"index is {name}")
        (folder / "index.json").write_bytes(data)

    for number, name in enumerate(("../outside/shard-00000.tar", "/etc/passwd", "a/b.tar", "a\0.tar", f"{ESCAPE}.tar")):
        folder, index = archive(f"shard named {number}")
        rewrite(folder, index, shards=(dataclasses.replace(index.shards[0], name=name), *index.shards[1:]))
    changes: dict[str, dict[str, Any]] = {
        "key that climbs": {"key": "../../x"},
        "key for terminals": {"key": ESCAPE},
        "length beyond all": {"num_bytes": 2**62},
        "offset below zero": {"offset": -1},
        "frame beyond all": {"frame_ends": (2**62,) * 9},
        "year beyond all": {"start_s": 2**60},
        "json beyond all": {"json_bytes": 2**50},
    }
    for name, values in changes.items():
        folder, index = archive(f"sequence with a {name}")
        with_entry(folder, index, 0, **values)

    folder, index = archive("source for terminals")
    rewrite(folder, index, origins=(dataclasses.replace(index.origins[0], source=ESCAPE),))
    folder, index = archive("huge frames")
    origin = whole_origin(2**12, 2**12, index.source)
    rewrite(folder, index, rows=2**12, cols=2**12, origins=(origin,))


def linked(make: Maker, archive: Archive) -> None:
    """Archives whose files are links to the outside."""
    folder, _ = archive("index is a link to the outside")
    move_outside(make, folder / "index.json")
    folder, index = archive("shard is a link to the outside")
    for shard in index.shards:
        move_outside(make, folder / shard.name)


def move_outside(make: Maker, path: Path) -> None:
    """Leave a link in the place of a file."""
    path.rename(make.outside / path.name)
    path.symlink_to(make.outside / path.name)


def settings(make: Maker) -> None:
    """YAML and command lines that would make objects."""
    command = TOUCH.format(canary=make.canary)
    texts = {
        "apply": f"!!python/object/apply:os.system ['{command}']\n",
        "apply inside": f"seed: !!python/object/apply:os.system ['{command}']\n",
        "new": f"data:\n  shards: !!python/object/new:os.system ['{command}']\n",
        "name": "seed: !!python/name:os.system\n",
        "module": "seed: !!python/module:os\n",
        "class path": f"data:\n  class_path: subprocess.Popen\n  init_args:\n    args: ['{command}']\n",
        "class path above": "class_path: os.system\ninit_args: {command: 'true'}\n",
        "no text": "\x00\x01\x02",
        "deep": "[" * 5000,
        "aliases": "a: &a [x]\n"
        + "".join(f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 9)}]\n" for i in range(12)),
    }
    for name, text in texts.items():
        make.file(f"yaml, {name}", "config", "c.yaml", text.encode())
    make.samples.append(Sample("yaml, a folder", "config", make.folder("yaml, a folder")))
    lines = {
        "apply": [
            "--data.shards",
            f"!!python/object/apply:os.system ['{command}']",
            "--seed",
            "!!python/name:os.system",
        ],
        "class path": ["--data", f'{{"class_path": "subprocess.Popen", "init_args": {{"args": "{command}"}}}}'],
    }
    for name, line in lines.items():
        make.file(f"command line, {name}", "override", "line.json", json.dumps(line).encode())


def checkpoints(make: Maker) -> None:
    """Checkpoints whose files are something else."""
    tensor = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    good = struct.pack("<Q", len(tensor)) + tensor + bytes(4)

    def checkpoint(name: str, **files: bytes) -> Path:
        folder = make.folder(name) / "step-000000001"
        folder.mkdir()
        contents = {"model.safetensors": good, "optimizer.safetensors": good, "state.json": b"{}", **files}
        for file, data in contents.items():
            (folder / file).write_bytes(data)
        write_manifest(folder)
        make.samples.append(Sample(name, "checkpoint", folder))
        return folder

    checkpoint("checkpoint, state is a pickle", **{"state.json": make.payload})
    checkpoint("checkpoint, state is deep", **{"state.json": b"[" * 200_000})
    checkpoint("checkpoint, model is a pickle", **{"model.safetensors": make.payload})
    folder = checkpoint("checkpoint, manifest is a pickle")
    (folder / "MANIFEST.json").write_bytes(make.payload)
    folder = checkpoint("checkpoint, manifest is deep")
    (folder / "MANIFEST.json").write_bytes(b"[" * 200_000)
    folder = checkpoint("checkpoint, manifest leads out")
    text = (folder / "MANIFEST.json").read_text(encoding="utf-8")
    (folder / "MANIFEST.json").write_text(
        text.replace("model.safetensors", "../../../outside/secret"), encoding="utf-8"
    )
    folder = checkpoint("checkpoint, model is a link to the outside")
    (make.outside / "model.safetensors").write_bytes(good)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(make.outside / "model.safetensors")
    large = tensor.replace(b"[1]", b"[1099511627776]")
    lengths = [struct.pack("<Q", len(tensor)) + tensor, struct.pack("<Q", len(large)) + large]
    headers = [struct.pack("<Q", 2**63 - 1), struct.pack("<Q", 99_999) + b"[" * 99_999, *lengths]
    for number, header in enumerate(headers):
        make.file(f"safetensors {number}", "weights", "w.safetensors", header)


def good_ones(make: Maker) -> None:
    """One good input of every reader: read first, so that nothing is left to be imported."""
    folder = make.folder("good knmi")
    write_series(folder / "in", range(4))
    make.samples.append(Sample("good knmi", "knmi", folder / "in", "good"))
    write_odim_series(make.folder("good odim") / "in", range(4))
    make.samples.append(Sample("good odim", "odim", make.root / "good odim" / "in", "good"))
    make.samples.append(Sample("good smaat", "smaat", collected(make.folder("good smaat")), "good"))
    small_archive(make.folder("good shards") / "shards")
    make.samples.append(Sample("good shards", "archive", make.root / "good shards" / "shards", "good"))
    make.file("good settings", "config", "c.yaml", b"seed: 3\nrun: {dir: r}\ndata: {shards: s}\n", "good")
    make.file("some weights", "weights", "w.pth", b"", "good")
    saved = io.BytesIO()
    torch.save({"a": torch.zeros(2)}, saved)
    make.file("other weights", "weights", "w.pth", saved.getvalue(), "good")
    make.file("no checkpoint", "checkpoint", "x", b"", "good")


def make_samples(root: Path, outside: Path, canary: Path) -> list[Sample]:
    """Make all samples.

    Args:
        root: Where; each gets a folder of its own.
        outside: A folder that nothing may be read from; it is filled with what the samples point to.
        canary: The file that code would make if any ran.
    """
    make = Maker(root, outside, canary)
    good_ones(make)
    (outside / "secret").write_bytes(b"secret")
    (secret,) = write_series(outside, [2])
    secret.rename(outside / f"{NAME}.h5")
    for kind in (pickles, hdf5, shards, settings, checkpoints):
        kind(make)
    archives(make, (outside / f"{NAME}.h5").read_bytes())
    return make.samples

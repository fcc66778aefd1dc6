"""Recognise a file's format by its first bytes, and name what reads it.

Signatures: the formats' own specifications, as the `file` command's database (magic(5)) collects them; RADOLAN's
header: DWD, RADOLAN/RADVOR-OP Kompositformat, version 2.5, section 1.3.
"""

import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

HEAD_BYTES: Final = 4096
"""Bytes that tell: a tar's mark lies at 257, and bulletins of weather services have a line before their message."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """A format of files.

    Attributes:
        name: What messages call it, with its article.
        advice: What reads it, or what to do about it.
        is_sound: Whether it is a radar format at all, and no error page in a file's place.
    """

    name: str
    advice: str
    is_sound: bool = True


TAR: Final = "a tar"
ZIP: Final = "a zip"
XARRAY: Final = "pack it with the sub-command xarray"
FORMATS: Final[tuple[tuple[re.Pattern[bytes], Format], ...]] = tuple(
    (re.compile(signature, re.DOTALL), Format(name=name, advice=advice))
    for signature, name, advice in (
        (rb"\x89HDF\r\n\x1a\n", "an HDF5 file", f"{XARRAY}, or with knmi, odim or smaat if it is one of theirs"),
        (rb"CDF[\x01\x02\x05]", "a NetCDF-3 file", f"{XARRAY} (it reads NetCDF of every version)"),
        (
            rb".{0,64}?GRIB...[\x01\x02]",
            "a GRIB file",
            f"{XARRAY} --engine rasterio, or with importer --importer mrms_grib",
        ),
        (rb"II[*+]\0|MM\0[*+]", "a TIFF file", f"{XARRAY} --engine rasterio"),
        (rb"GIF8[79]a", "a GIF picture", "pack MeteoSwiss' with the sub-command importer --importer mch_gif"),
        (rb"P[25]\s", "a PGM picture", "pack FMI's with the sub-command importer --importer fmi_pgm"),
        (rb"\x89PNG\r\n\x1a\n", "a PNG picture", "no sub-command reads pictures of maps: fetch the data themselves"),
        (
            rb"[A-Z][A-Z]\d{6}\d{5}\d{4}BY",
            "a RADOLAN composite",
            f"{XARRAY} --engine radolan (of the package wradlib)",
        ),
        (
            rb".{0,64}?BUFR...[\x02-\x04]",
            "a BUFR message",
            "make ODIM_H5 of it first, with EUMETNET's bufr2hdf5 or the package that its producer offers",
        ),
        (rb"AR2V|ARCHIVE2", "a NEXRAD volume", "no polar data are read: make a composite of it first"),
        (rb"\x0e\x03\x13\x01", "an HDF4 file", "make HDF5 of it first, with h4toh5"),
        (rb"\x1f\x8b", "gzip-compressed", "take the compression off first (gunzip)"),
        (rb"BZh[1-9]", "bzip2-compressed", "take the compression off first (bunzip2)"),
        (rb"\xfd7zXZ\0", "xz-compressed", "take the compression off first (unxz)"),
        (rb"\x28\xb5\x2f\xfd", "zstd-compressed", "take the compression off first (unzstd)"),
        (rb"PK(?:\x03\x04|\x05\x06)", ZIP, "give its name the ending .zip: archives are read in place"),
        (rb".{257}ustar", TAR, "give its name the ending .tar: archives are read in place"),
    )
)
HDF5: Final = FORMATS[0][1]
ERROR_PAGE: Final = re.compile(rb"(?:\xef\xbb\xbf)?\s*<(?:!doctype|html|\?xml|error)", re.IGNORECASE)
PAGE: Final = Format(name="a web page or a server's error", advice="fetch the file again", is_sound=False)
GZIP: Final = b"\x1f\x8b"


def format_of(head: bytes) -> Format | None:
    """Recognise a format by a file's first bytes; None for one that is not known.

    Args:
        head: `HEAD_BYTES` of them, or all.
    """
    if ERROR_PAGE.match(head):
        return PAGE
    form = next((form for signature, form in FORMATS if signature.match(head)), None)
    inner = _inner_of_gzip(head) if head.startswith(GZIP) else None
    if form is None or inner is None:
        return form
    return Format(name=f"{inner.name}, {form.name}", advice=f"{inner.advice} ({form.advice} if that refuses it)")


def format_of_file(path: Path) -> Format | None:
    """Recognise a file's format; None for one that is not known, or cannot be read."""
    try:
        with path.open("rb") as file:
            return format_of(file.read(HEAD_BYTES))
    except OSError:
        return None


def _inner_of_gzip(head: bytes) -> Format | None:
    """Recognise what is compressed, by as much of it as the first bytes give."""
    try:
        return format_of(zlib.decompressobj(wbits=31).decompress(head, HEAD_BYTES)[:HEAD_BYTES])
    except zlib.error:
        return None

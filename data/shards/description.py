"""KEY.json of a sequence: all that a reader without the index needs, and what the index is compared with."""

from dataclasses import dataclass
from typing import Any, ClassVar, Final, Self

from ..errors import DataError
from ..frames import iso_time
from ..json_checks import JsonRecord, Listed, read_json
from .index import Index, SequenceEntry
from .origins import Part

MEMBER_VERSION: Final = 2
"""`schema_version` of KEY.json, which did not change with that of the index."""
CODEC: Final = (
    "one Blosc2 buffer a frame, frame i from byte frame_ends[i-1] (0 first) to frame_ends[i], uint16 (rows, cols)"
)


@dataclass(frozen=True, kw_only=True)
class Description(Part, JsonRecord):
    """The content of KEY.json, in the words of `Part`, `Index` and `SequenceEntry`."""

    # What other keys say is not used.
    __pydantic_config__: ClassVar[dict[str, Any]] = {**JsonRecord.__pydantic_config__, "extra": "ignore"}

    schema_version: int
    key: str
    start_s: int
    start_time: str
    num_frames: int
    starts: int
    frame_ends: Listed[int]
    rain_fraction: Listed[float]
    missing: Listed[int]
    codec: str = ""
    cadence_s: int
    rows: int
    cols: int
    missing_count: int
    window: int

    @classmethod
    def of(cls, index: Index, entry: SequenceEntry) -> Self:
        """Describe a sequence as its index does."""
        of_archive = ("cadence_s", "rows", "cols", "missing_count", "window")
        of_sequence = ("key", "start_s", "num_frames", "frame_ends", "rain_fraction", "missing")
        return cls(
            **{name: getattr(index, name) for name in of_archive},
            **{name: getattr(entry, name) for name in of_sequence},
            **vars(index.origins[entry.origin].part),
            schema_version=MEMBER_VERSION,
            starts=entry.num_starts,
            start_time=iso_time(entry.start_s),
            codec=CODEC,
        )


def wrong_in_json(index: Index, entry: SequenceEntry, data: bytes) -> list[str]:
    """List how KEY.json differs from the index.

    Args:
        index: The archive's index.
        entry: The sequence.
        data: Its bytes, both members.
    """
    name = f"{entry.key}.json"
    # Read as strictly as the index: the member may be anything.
    begin = entry.json_offset - entry.offset
    try:
        stored = read_json(Description, data[begin : begin + entry.json_bytes])
    except DataError as error:
        return [f"{name}: {error}"]

    # The words on the codec are for readers without the index; they may change.
    return [
        f"{name} says {field} = {getattr(stored, field)!r:.80}, the index says {value!r:.80}"
        for field, value in vars(Description.of(index, entry)).items()
        if field != "codec" and getattr(stored, field) != value
    ]

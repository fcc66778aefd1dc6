"""Choose the files of one frame each that a source takes: kind and quantity first, then one file a time.

Names tell times without a file being opened. Files are opened where names do not suffice: those of one time, those of
a folder in which several products lie (their names differ in more than the time), and one of every other product.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path, PurePath
from typing import Final

from ...errors import DataError
from ...frames import iso_time
from ..files import Place, RadarFile, files_of, find
from ..hdf5 import ChoiceError
from ..source import FileRef, Found, in_time_order, without_copies
from .formats import format_of_file

MOST_OTHERS: Final = 20
"""Files of other endings that are looked into for one of a known format."""
DIGITS_OF_TIME: Final = re.compile(r"\d{8,}(?:[T_-]\d{4,6}(?!\d))?", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Look:
    """What a file says when it is opened.

    Attributes:
        end_time_s: Its frame's time, epoch seconds UTC; None where it was not asked for or cannot be read.
        holds: The quantity that is taken of it; "" where there is nothing to choose.
        error: Why it cannot be taken: a ChoiceError that says what it holds where that is nothing that was asked for;
            any other is left to the survey where the name states the time.
    """

    end_time_s: int | None = None
    holds: str = ""
    error: DataError | None = None

    @property
    def other(self) -> ChoiceError | None:
        """Give the error of a sound file that holds what nobody asked for."""
        return self.error if isinstance(self.error, ChoiceError) and self.error.holds else None


@dataclass(frozen=True, kw_only=True)
class Finder:
    """How a source finds its files.

    Attributes:
        endings: How their names end.
        expected: What they are, for messages.
        time_of_name: Gives the time that a name states, epoch seconds UTC; None where the file has to be opened.
        look: Opens a file.
        max_bytes: Longest file that is read.
    """

    endings: Sequence[str]
    expected: str
    time_of_name: Callable[[RadarFile], int | None]
    look: Callable[[RadarFile], Look]
    max_bytes: int


def find_composites(paths: Sequence[Place], finder: Finder) -> Found:
    """Find the files that a source takes, in time order.

    Raises:
        DataError: There is none, or there are two of one time that differ, or as `data.sources.files.find`.
    """
    files = find(paths, finder.endings)
    if not files:
        names = ", ".join(map(str, paths)) or "nothing"
        raise DataError(f"no radar files in {names}{_other_files(paths)}; expected {finder.expected}")
    times_s = {file: finder.time_of_name(file) for file in files}

    # Kind and quantity first.
    looks = _looks(files, times_s, finder)
    others = {file: look.other for file, look in looks.items() if look.other is not None}
    if len(others) == len(files):
        _refuse_all(others)
    refs = [FileRef(file=file, end_time_s=_time_of(file, times_s[file], looks)) for file in files if file not in others]

    # Then one file a time.
    kept, copies = without_copies(refs, lambda ref: hashlib.sha256(ref.file.read(finder.max_bytes)).hexdigest())
    _check_one_quantity(kept, looks)
    return Found(refs=in_time_order(kept), notes=(*_notes(others), *copies))


def _other_files(paths: Sequence[Place]) -> str:
    """Name a file that lies there instead, its format, and what reads it."""
    others = [file for path in paths if isinstance(path, Path) for file in files_of(path, ("",))]
    if not others:
        return ""
    # One whose format is known helps more than a text that lies beside it.
    forms = ((file, format_of_file(file)) for file in others[:MOST_OTHERS])
    example, form = next(((file, form) for file, form in forms if form is not None), (others[0], None))
    known = f", {form.name}: {form.advice}" if form is not None else ""
    count = "1 file" if len(others) == 1 else f"{len(others)} files"
    return f" ({count} with other endings, such as {example}{known})"


def _looks(files: Sequence[RadarFile], times_s: dict[RadarFile, int | None], finder: Finder) -> dict[RadarFile, Look]:
    """Open the files of which their names do not say enough."""
    products: dict[tuple[PurePath, str], list[RadarFile]] = {}
    for file in files:
        products.setdefault((_folder(file), DIGITS_OF_TIME.sub("#", file.name)), []).append(file)
    num_products = Counter(folder for folder, _ in products)
    num_alike = Counter(times_s.values())

    looks: dict[RadarFile, Look] = {}
    for (folder, _), alike in products.items():
        looks[alike[0]] = finder.look(alike[0])
        is_mixed = num_products[folder] > 1 or looks[alike[0]].other is not None
        for file in alike[1:]:
            if is_mixed or times_s[file] is None or num_alike[times_s[file]] > 1:
                looks[file] = finder.look(file)
    return looks


def _folder(file: RadarFile) -> PurePath:
    """Give the folder in which products are told apart; a store's folders are days and hours of one product."""
    if file.stored is not None:
        return PurePath(file.stored.store.url)
    return file.path.parent if file.member is None else file.path / PurePath(file.member.name).parent


def _time_of(file: RadarFile, named_s: int | None, looks: dict[RadarFile, Look]) -> int:
    """Give a file's time, of its name or of its content; raises what is wrong with the content where neither does."""
    if named_s is not None:
        return named_s
    look = looks[file]
    if look.end_time_s is None:
        raise look.error or DataError(f"{file} states no time; fetch it again or remove it")
    return look.end_time_s


def _time_and_name(ref: FileRef) -> tuple[int, str]:
    return ref.end_time_s, str(ref)


def _check_one_quantity(refs: Sequence[FileRef], looks: dict[RadarFile, Look]) -> None:
    """Refuse files of one time that hold different quantities, of which the user has to choose."""
    for time_s, alike in groupby(sorted(refs, key=_time_and_name), key=lambda ref: ref.end_time_s):
        held = {looks[ref.file].holds: ref for ref in alike if ref.file in looks and looks[ref.file].holds}
        if len(held) > 1:
            listed = " and ".join(f"{ref} holds {quantity}" for quantity, ref in held.items())
            raise ChoiceError(
                f"of one time, {iso_time(time_s)}, {listed}; expected one quantity: choose with --quantity "
                f"{' or '.join(held)}"
            )


def _notes(others: dict[RadarFile, ChoiceError]) -> tuple[str, ...]:
    """Count the files that are not taken, by what they hold, with an example of each."""
    examples: dict[str, RadarFile] = {}
    for file, error in others.items():
        examples.setdefault(error.holds, file)
    counts = Counter(error.holds for error in others.values())
    notes = []
    for holds, count in counts.items():
        subject = "1 file holds" if count == 1 else f"{count} files hold"
        notes.append(f"{subject} {holds} and {'is' if count == 1 else 'are'} not read, such as {examples[holds]}")
    return tuple(notes)


def _refuse_all(others: dict[RadarFile, ChoiceError]) -> None:
    """Refuse files of which none is taken: the first one's error, and how many are like it."""
    first = next(iter(others.values()))
    counts = Counter(error.holds for error in others.values())
    listed = ", ".join(f"{count} hold {holds}" for holds, count in counts.items())
    raise ChoiceError(f"{first}" + (f" (of {len(others)} files, {listed})" if len(others) > 1 else ""), first.holds)

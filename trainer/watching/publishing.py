"""Published cycles: each a folder that appears whole, `latest` a link that never points back, old ones removed."""

import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from ...data.errors import DataError
from ...data.whole_file import PARTIAL_SUFFIX, make_durable, write_whole

LATEST: Final = "latest"
ABOUT_NAME: Final = "cycle.json"
MAKING: Final = ".making-"
REMOVING: Final = ".removing-"
STAMP: Final = "%Y%m%d%H%M"


def stamp_of(time_s: int) -> str:
    """Format a cycle's time as its folder is called."""
    return datetime.fromtimestamp(time_s, UTC).strftime(STAMP)


class Shelf:
    """The cycles of one radar below a folder.

    Args:
        folder: Where they lie; made if need be, and rid of what a killed process has left.
        keep: Cycles that stay; older ones are removed.

    Attributes:
        cycles: What is published: by time, what its cycle.json says.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep
        folder.mkdir(parents=True, exist_ok=True)
        remove_unfinished(folder)

        self.cycles: dict[int, dict[str, Any]] = {}
        for path in folder.glob(f"*/{ABOUT_NAME}"):
            # A folder that is no cycle of ours is left alone.
            with suppress(OSError, ValueError, KeyError):
                about = json.loads(path.read_text(encoding="utf-8"))
                time_s = int(about["reference_time_s"])
                if path.parent.name == stamp_of(time_s) and not path.parent.is_symlink():
                    self.cycles[time_s] = about
        self._point()

    @property
    def latest_s(self) -> int | None:
        """Time of the newest cycle; None without one."""
        return max(self.cycles, default=None)

    def publish(self, time_s: int, write: Callable[[Path], Sequence[Path]], about: dict[str, Any]) -> Path:
        """Publish a cycle: write it under another name, and rename it when all of it is there.

        Args:
            time_s: Its time.
            write: Writes the files into a folder and returns them.
            about: What cycle.json says besides.

        Returns:
            Its folder.

        Raises:
            DataError: It cannot be written; nothing of it is left then.
        """
        stamp = stamp_of(time_s)
        making = self.folder / f"{MAKING}{stamp}"
        target = self.folder / stamp
        try:
            _remove(making)
            making.mkdir()
            files = [str(path.relative_to(making)) for path in write(making)]
            about = {"reference_time_s": time_s, **about, "files": files}
            write_whole(making / ABOUT_NAME, json.dumps(about, indent=2).encode())
            make_durable(making)
            making.rename(target)
        except OSError as error:
            _remove(making)
            raise DataError(f"{target}: could not be published: {error.strerror or error}") from error
        except BaseException:
            _remove(making)
            raise

        self.cycles[time_s] = about
        self._point()
        self._drop_old()
        return target

    def _point(self) -> None:
        """Let `latest` lead to the newest cycle; the link is replaced in one step."""
        if self.latest_s is None:
            return
        link = self.folder / LATEST
        stamp = stamp_of(self.latest_s)
        if link.is_symlink() and link.readlink() == Path(stamp):
            return
        making = self.folder / f"{MAKING}{LATEST}"
        _remove(making)
        making.symlink_to(stamp)
        making.replace(link)

    def _drop_old(self) -> None:
        """Remove the oldest cycles; each is gone from its name at once."""
        for time_s in sorted(self.cycles)[: -self.keep]:
            del self.cycles[time_s]
            old = self.folder / stamp_of(time_s)
            removing = self.folder / f"{REMOVING}{old.name}"
            with suppress(OSError):
                old.rename(removing)
            _remove(removing)


def remove_unfinished(folder: Path) -> None:
    """Remove what a killed watch has left half written in a folder."""
    for path in folder.glob(".*"):
        if path.name.startswith((MAKING, REMOVING)) or path.name.endswith(PARTIAL_SUFFIX):
            _remove(path)


def _remove(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)

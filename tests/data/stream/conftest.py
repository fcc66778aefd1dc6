"""One archive for the tests that read it and leave it as it is."""

import pytest

from tests.data.archives import PackedArchive
from tests.data.stream.streams import pack


@pytest.fixture(scope="package")
def archive(tmp_path_factory: pytest.TempPathFactory) -> PackedArchive:
    """Pack 8 runs, some shorter than a window, into 3 shards; a few frames lack a pixel."""
    return pack(tmp_path_factory.mktemp("shards"), [40, 3, 25, 70, 9, 2, 33, 14], num_shards=3)

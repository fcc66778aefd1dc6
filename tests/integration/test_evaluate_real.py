"""S-PROG on real rain, held against the figures that were measured for it before (slow; needs ../shared)."""

from pathlib import Path
from typing import Any

import pytest

from rainspark.data.exit_codes import ExitCode
from rainspark.data.pack.__main__ import main as pack
from tests.conftest import REPOSITORY
from tests.integration.test_evaluate import _own_log_handlers as _own_log_handlers
from tests.integration.test_evaluate import evaluate, scores_of

FMI = REPOSITORY.parent / "shared" / "data" / "fmi"
CSI = {(30, 0.5): 0.692, (60, 0.5): 0.566, (30, 2.0): 0.223, (60, 2.0): 0.116, (30, 5.0): 0.038, (60, 5.0): 0.002}
"""By lead time in minutes and threshold in mm/h: five windows, FMI's composites of 28 September 2016."""


@pytest.mark.slow
@pytest.mark.skipif(not FMI.is_dir(), reason="the radar files of ../shared/data/fmi are not here")
def test_sprog_has_the_skill_that_was_measured_for_it(tmp_path: Path) -> None:
    importer = ["importer", "--importer", "fmi_pgm", "--time-pattern", "%Y%m%d%H%M_fmi*", "--argument", "gzipped=true"]
    argv = [*importer, "--zr", "223,1.53", "--crop", "700:1116,150:566", str(FMI), "--out", str(tmp_path / "shards")]
    assert pack(argv) == 0
    words = ["--data.shards", str(tmp_path / "shards"), "--split", "all", "--limit", "5", "--frames_out", "12"]
    words += ["--models", "sprog", "extrapolation", "--thresholds", "0.5", "2", "5", "--cache", "none"]
    assert evaluate([*words, "--out", str(tmp_path / "out")]) == ExitCode.DONE

    def csi(model: str) -> dict[tuple[Any, Any], float]:
        records = scores_of(tmp_path / "out")["models"][model]["scores"]
        return {(each["lead_min"], each["threshold_mmh"]): each["value"] for each in records if each["score"] == "csi"}

    # Other windows of the same hours: near, not equal.
    sprog, carried = csi("sprog"), csi("extrapolation")
    for key, measured in CSI.items():
        assert sprog[key] == pytest.approx(measured, abs=0.05), key
    assert sprog[60, 0.5] > carried[60, 0.5] + 0.04

"""A tiny run and its radar, for watches: SmaAt-UNet with fresh weights on storms of 64 x 64 pixels."""

from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from rainspark.data.sources.knmi_writer import file_name, write_knmi_file
from rainspark.trainer.checkpoint.folder import save
from rainspark.trainer.forecasting.build import build_nowcaster
from rainspark.trainer.settings.data import NowcastDataConfig
from rainspark.trainer.settings.experiment import FinetuneConfig
from rainspark.trainer.settings.model import NowcastConfig
from rainspark.trainer.settings.parse import as_dict
from rainspark.trainer.settings.run import NowcastRunConfig
from tests.data.radar_files import read_header, storms
from tests.integration.faults import state_of

SIZE = 64
FRAMES_IN, FRAMES_OUT = 3, 2
CADENCE_S = 300
FIRST_S = 1_577_836_800


def time_of(number: int) -> int:
    return FIRST_S + number * CADENCE_S


def radar_name(number: int) -> str:
    return file_name(time_of(number))


def counts_of(num_frames: int) -> npt.NDArray[np.uint16]:
    """Make storms that move on for so many frames."""
    return np.stack(list(storms(num_frames, SIZE, SIZE, 3)))


def radar_bytes(scratch: Path, counts_hw: npt.NDArray[np.uint16], number: int) -> bytes:
    path = scratch / radar_name(number)
    write_knmi_file(path, counts_hw, time_of(number))
    return path.read_bytes()


SMAAT: Final = NowcastConfig(name="smaat_unet", frames_in=FRAMES_IN, frames_out=FRAMES_OUT, smaat_width=4)


def make_run(folder: Path, scratch: Path, model: NowcastConfig = SMAAT) -> Path:
    """Make a run's folder with one checkpoint."""
    run = NowcastRunConfig(dir=str(folder))
    config = as_dict(FinetuneConfig(run=run, data=NowcastDataConfig(shards="none"), model=model))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        weights = build_nowcaster(model).state_dict()
    radar_bytes(scratch, counts_of(1)[0], 0)
    grid = read_header(scratch / radar_name(0)).grid
    data = {
        "grid": grid.to_json(), "cadence_s": CADENCE_S, "scale_mmh": 0.12, "source": "synthetic storms", "spans": {},
    }  # fmt: skip
    save(folder, replace(state_of(1), config=config, data=data), weights, {}, keep_last=2)
    return folder

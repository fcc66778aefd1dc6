"""A finished run as a forecaster: rain in, rain out, in mm/h."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np
import torch
from torch import Tensor, nn

from ...data.errors import ConfigError, DataError
from ...data.frames import Grid
from ...data.randomness import generator
from ...data.units import ModelSpace
from ...models.nowcasting.matching import match_distribution
from ...models.nowcasting.members import Noise
from ...models.nowcasting.motion import advect, displacements, estimate_motion, fill_missing
from ...models.nowcasting.parts import PART_PX
from ...models.nowcasting.smaat_unet import SmaAtUNet
from ...models.patches import PATCH
from ...models.weights.manifest import CheckpointError, best_checkpoint
from ..checkpoint.folder import load
from ..settings.experiment import FinetuneConfig
from ..settings.parse import from_dict
from .build import build_nowcaster

if TYPE_CHECKING:
    from ...models.nowcasting.nowcaster import Nowcaster

NOISE_WEIGHTS: Final = ("members.", "noise_proj.")
"""How the names of the weights begin that only an ensemble has."""


def forecast_whole(
    model: Callable[..., Tensor], past_mmh_bthw: Tensor, past_valid_bthw: Tensor | None, space: ModelSpace
) -> Tensor:
    """Forecast frames of any size, in model space: extend them to whole patches by missing pixels, and cut the result.

    Args:
        model: A `Nowcaster` or `SmaAtUNet`, or what wraps one.
        past_mmh_bthw: Rain in mm/h, 0 where missing.
        past_valid_bthw: False where missing; None: none is.
        space: The model's space.
    """
    height, width = past_mmh_bthw.shape[-2:]
    past, valid = extended(past_mmh_bthw, past_valid_bthw)
    forecast_bthw: Tensor = model(space.from_mmh(past), None, valid)
    return forecast_bthw[..., :height, :width]


def extended(past_mmh_bthw: Tensor, past_valid_bthw: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Extend frames to whole patches by missing pixels, right and below: the pixels keep their places."""
    height, width = past_mmh_bthw.shape[-2:]
    border = (0, -width % PATCH, 0, -height % PATCH)
    if not any(border):
        return past_mmh_bthw, past_valid_bthw
    measured = torch.ones_like(past_mmh_bthw, dtype=torch.bool) if past_valid_bthw is None else past_valid_bthw
    return nn.functional.pad(past_mmh_bthw, border), nn.functional.pad(measured, border)


def rain_of(
    forecast_bthw: Tensor,
    past_mmh_bthw: Tensor,
    past_valid_bthw: Tensor | None,
    *,
    space: ModelSpace,
    match: str,
) -> Tensor:
    """Turn a forecast in model space into rain: mm/h, not below 0, with measured rates where `match` asks for it.

    Values that are not finite stay so: they are counted as what they are. A window whose last frame was not measured at
    all has no rates to give, and keeps its own.
    """
    rain_mmh_bthw = space.to_mmh(forecast_bthw).clamp(min=0)
    if match == "none":
        return rain_mmh_bthw

    last_mmh = past_mmh_bthw[:, -1:]
    valid_b1hw = None if past_valid_bthw is None else past_valid_bthw[:, -1:]
    if match in ("last_frame", "halfway"):
        matched_mmh = match_distribution(rain_mmh_bthw, last_mmh, valid_b1hw)
        if match == "last_frame":
            return matched_mmh
        # Of its own growth half is believed, as the model's space measures it; what it says is dry stays dry.
        halfway_mmh = space.to_mmh((space.from_mmh(rain_mmh_bthw) + space.from_mmh(matched_mmh)) / 2)
        return torch.where(rain_mmh_bthw == 0, 0.0, halfway_mmh)

    # The last frame, carried along to every lead time, gives the rates.
    steps = displacements(estimate_motion(past_mmh_bthw, past_valid_bthw), rain_mmh_bthw.shape[1])
    filled_mmh = last_mmh if valid_b1hw is None else fill_missing(last_mmh, valid_b1hw)
    # Without the guess of what flows in, which is smooth: what is taken here are rates, cores included.
    carried_mmh = torch.cat([advect(filled_mmh, step) for step in steps], dim=1)
    matched_mmh = match_distribution(rain_mmh_bthw, carried_mmh, None)
    if valid_b1hw is not None:
        # What was filled in from nothing is 0: it would say that it stays dry.
        has_rates = valid_b1hw.any(3, keepdim=True).any(2, keepdim=True)
        matched_mmh = torch.where(has_rates, matched_mmh, rain_mmh_bthw)

    return torch.maximum(rain_mmh_bthw, matched_mmh) if match == "floor" else matched_mmh


@dataclass(frozen=True, kw_only=True, eq=False)
class RunForecaster:
    """The best checkpoint of a fine-tuning run.

    Attributes:
        name: For tables and pictures.
        config: The run's settings.
        data: What the run learned from: source, grid, cadence_s, scale_mmh, spans of its parts.
        model: The model with the chosen weights, in evaluation mode.
        step: Steps that the weights were trained for.
        path: The checkpoint.
    """

    name: str
    config: FinetuneConfig
    data: dict[str, Any]
    model: nn.Module
    step: int
    path: Path

    @property
    def frames_in(self) -> int:
        """Count the past frames that it takes."""
        return self.config.model.frames_in

    @property
    def frames_out(self) -> int:
        """Count the future frames that it gives."""
        return self.config.model.frames_out

    @property
    def is_ensemble(self) -> bool:
        """Whether members can be drawn."""
        return self.config.model.ensemble

    @property
    def grid(self) -> Grid:
        """Give the grid that the run learned on.

        Raises:
            DataError: The checkpoint does not say it, or has learned on several.
        """
        if "grid" not in self.data:
            raise DataError(f"{self.path}: does not record the grid that it was trained on; train it again")
        if self.data["grid"] is None:
            raise DataError(
                f"{self.path}: was trained on several radars or parts of a grid ({self.data.get('source')}), and one "
                "grid is needed here; fine-tune it on one (--data.source, or shards of one --crop)"
            )
        return Grid.from_json(self.data["grid"])

    @property
    def cadence_s(self) -> int:
        """Give the seconds between the frames that the run learned from; raises DataError where it does not say."""
        cadence_s = self.data.get("cadence_s")
        if not isinstance(cadence_s, int):
            raise DataError(f"{self.name}: the run records no cadence_s ({cadence_s!r}); train it again")
        return cadence_s

    def forecast(self, rain_mmh_bthw: Tensor, valid_bthw: Tensor | None, frames_out: int | None = None) -> Tensor:
        """Forecast rain, as every `Forecaster` does. Frames are extended to whole patches and cut again.

        Args:
            rain_mmh_bthw: Rain in mm/h, 0 where missing.
            valid_bthw: False where missing; None: none is.
            frames_out: Lead times to give, at most the model's own; None: all.

        Raises:
            ConfigError: More lead times than the model gives, or none.
        """
        frames_out = self._check_leads(frames_out)
        past = rain_mmh_bthw.float()
        settings = self.config.model
        with torch.no_grad():
            forecast_bthw = forecast_whole(self.model, past, valid_bthw, settings.space)
            rain_bthw = rain_of(forecast_bthw, past, valid_bthw, space=settings.space, match=settings.match)
        return rain_bthw[:, :frames_out]

    def _check_leads(self, frames_out: int | None) -> int:
        frames_out = self.frames_out if frames_out is None else frames_out
        if not 1 <= frames_out <= self.frames_out:
            raise ConfigError(
                f"{self.name}: forecasts {self.frames_out} frames, {frames_out} were asked for; ask for 1 to "
                f"{self.frames_out}"
            )
        return frames_out

    def forecast_members(
        self,
        rain_mmh_bthw: Tensor,
        valid_bthw: Tensor | None,
        frames_out: int | None = None,
        *,
        members: int,
        seed: int = 0,
        issue_s_b: Sequence[int],
    ) -> Tensor:
        """Forecast members, (b, members, frames_out, h, w), mm/h; a member is the same in any batch and any number.

        Args:
            rain_mmh_bthw: Rain in mm/h, 0 where missing.
            valid_bthw: False where missing; None: none is.
            frames_out: Lead times to give, at most the model's own; None: all.
            members: How many to draw.
            seed: Of the members.
            issue_s_b: Ends of the windows' last frames, epoch seconds, which noise is drawn by.

        Raises:
            ConfigError: The run is no ensemble, or gives fewer lead times.
        """
        if not self.is_ensemble:
            raise ConfigError(
                f"{self.name}: the run forecasts one field ({self.path}), and {members} members were asked for; train "
                f"an ensemble from it: rainspark finetune --config finetune_ensemble --init_from {self.path}"
            )
        frames_out = self._check_leads(frames_out)
        past = rain_mmh_bthw.float()
        batch, _, *size = past.shape
        # Of a continent they are gigabytes: they are there once.
        forecast_bmthw = past.new_empty(batch, members, frames_out, *size)
        for number, issue_s in zip(range(batch), issue_s_b, strict=True):
            row = slice(number, number + 1)
            draws_m = [generator(seed, "ensemble", issue_s, member) for member in range(members)]
            of_one = self._members_of_one(past[row], None if valid_bthw is None else valid_bthw[row], draws_m)
            with torch.no_grad():
                for member, rain_thw in enumerate(of_one):
                    forecast_bmthw[number, member] = rain_thw[:frames_out]
        return forecast_bmthw

    def _members_of_one(
        self, past_1thw: Tensor, valid_1thw: Tensor | None, draws_m: Sequence[np.random.Generator]
    ) -> Iterator[Tensor]:
        """Draw the members of one window one by one, (leads, h, w), so that none depends on another."""
        model, settings = cast("Nowcaster", self.model), self.config.model
        height, width = past_1thw.shape[-2:]
        past, valid = extended(past_1thw, valid_1thw)
        start = model.start(settings.space.from_mmh(past), valid)
        for draws in draws_m:
            noise = Noise.draw(draws, (past.shape[-2], past.shape[-1]), self.frames_out).to(past.device)
            member_1lhw = model.members_of(start, noise)[:, 0, :, :height, :width]
            yield rain_of(member_1lhw, past_1thw, valid_1thw, space=settings.space, match=settings.match)[0]


def load_forecaster(folder: Path, *, name: str | None = None, device: str = "cpu") -> RunForecaster:
    """Read a fine-tuning run's best checkpoint, or its newest where none was chosen.

    Args:
        folder: The run's folder, or one checkpoint's.
        name: For tables; the folder's name if None.
        device: Where it forecasts.

    Raises:
        CheckpointError: No such run, a checkpoint that does not verify, or one of another kind or architecture.
    """
    if not folder.is_dir():
        problem = "is a file" if folder.exists() else "does not exist"
        raise CheckpointError(f"{folder} {problem}; expected the folder of a fine-tuning run")
    # A best checkpoint that is damaged is an error: any other one is another model, and a score would not say so.
    saved = load(best_checkpoint(folder) or folder)
    try:
        config = from_dict(saved.state.config, FinetuneConfig)
    except ConfigError as error:
        raise CheckpointError(
            f"{saved.path}: not of a fine-tuning run ({error}); train one with trainer/finetune.py --init_from {folder}"
        ) from error

    # Compared before they are loaded, so that the message names what differs.
    model = build_nowcaster(config.model)
    # Averaged weights are what the run's own scores were made with, where it keeps them.
    weights = saved.average or saved.model
    expected = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    stored = {key: tuple(tensor.shape) for key, tensor in weights.items()}
    differing = sorted(key for key in expected.keys() | stored.keys() if expected.get(key) != stored.get(key))
    if differing and all(key.startswith(NOISE_WEIGHTS) and key not in stored for key in differing):
        raise CheckpointError(
            f"{saved.path}: its settings describe an ensemble, and it holds no weights of the members' noise "
            f"({', '.join(differing[:4])}); train an ensemble from it: rainspark finetune --config finetune_ensemble "
            f"--init_from {saved.path}"
        )
    if differing:
        raise CheckpointError(
            f"{saved.path}: its weights are not those of the model that its settings describe: "
            f"{', '.join(differing[:4])} differ ({len(differing)} in all); another version wrote it, or it was "
            "changed; train it again"
        )

    model.load_state_dict(weights)
    # Domains may be a continent: SmaAt-UNet alone, which looks at the whole of a frame at once, cannot be cut.
    if not isinstance(model, SmaAtUNet):
        model.part_px = PART_PX
    return RunForecaster(
        name=name or folder.resolve().name,
        config=config,
        data=saved.state.data,
        model=model.to(device).eval(),
        step=saved.state.step,
        path=saved.path,
    )

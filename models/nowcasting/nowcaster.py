"""SpaT-SparK's forecaster: encoder of the past frames, translation to the future, decoder of the future frames."""

from dataclasses import dataclass
from typing import Final, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..autoencoder import Autoencoder
from ..decoder import Activation
from ..encoder import Encoder
from ..patches import PATCH, pack, patch_moments, patchify, place_moments
from ..sparse import PatchLayout
from .blend import Blend
from .cascade import NUM_LEVELS, Cascade
from .members import Members, Noise
from .motion import MARGIN_PX, Carried, Space, advect, carry
from .parts import OVERLAP_PX, in_parts
from .translation import IdentityTranslation, TranslationName, build_translation

Head = Literal["patch", "direct", "residual", "advected", "cascade"]
HEAVIEST_SHARE: Final = 1.5
HEAVIEST_MMH: Final = 10.0
"""No member rains harder than so many times the heaviest rain of the past frames, or than so much where that is less:
in a logarithmic space noise of a few deviations is hundreds of mm/h, which no radar saw an hour before (ours)."""
CARRIED: Final = ("advected", "cascade")
"""Heads that carry the last frame along."""
Frozen = Literal["none", "encoder", "decoder", "both"]


@dataclass(frozen=True, kw_only=True)
class Start:
    """A window's forecast before it is carried along, float32 at least.

    Attributes:
        canvas_blhw: The last frame, damped, and what grew on it, continued by `MARGIN_PX` on every side.
        entered_blhw: What is added at the place of arrival.
        steps: Displacements to the lead times, each (b, 2, h, w).
        levels_bshw: The last frame's scales, on the canvas; None but for `cascade`, like the next.
        damping_bsl: What is left of them at each lead time, see `Cascade`.
        log_factor_bshw: Logarithm of the factor of each scale's noise, of the frame; None but for ensembles.
        heaviest_b: Bound of the members' rain, model space.
    """

    canvas_blhw: Tensor
    entered_blhw: Tensor
    steps: list[Tensor]
    levels_bshw: Tensor | None
    damping_bsl: Tensor | None
    log_factor_bshw: Tensor | None
    heaviest_b: Tensor


class Nowcaster(Autoencoder):
    """Past frames to future frames.

    Parameters have the published names: those of `Autoencoder`, so that a pretrained SparK fits, and `transition.*`.
    The translation acts on the encoder's maps before they are normalised, as published.

    Args:
        encoder: see `build_encoder`; its input channels are the past frames.
        frames_out: future frames.
        decoder_width: see `Autoencoder`.
        decoder_activation: see `Autoencoder`.
        translation: see `build_translation`.
        head: what the decoder's output stands for. `patch`: frames normalised by the moments of the past frames' patch
            (published; moments over all past frames and valid pixels of 32 x 32 pixels). `direct`: the frames
            themselves. `residual`: what is added to the last past frame, 0 where that is missing; starts at 0, which
            is persistence. `advected`: what is added to the last past frame, smoothed for each lead time (`Blend`),
            before it is carried along with the rain's motion, and what is added afterwards; starts at 0, which is
            extrapolation. The encoder then sees the past frames moved on to the last one's time. `cascade`: the same,
            with each scale forecast from the last two frames by how long this window's own rain keeps it (`Cascade`).
        ensemble: members can be drawn (`Members`); for `cascade`.
        masks: patches will be hidden while training. Without, the mask tokens are never used and need no gradients.
        patch: see `Autoencoder`.
        target_eps: see `Autoencoder`.
        space: of the frames; `advected` finds motion in mm/h.

    Attributes:
        part_px: side of the parts in which whole frames are forecast (`in_parts`); None: at once, as while training.
            The motion is found on the whole frame in any case.

    Raises:
        ValueError: a number of frames, translation or head that does not exist.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        frames_out: int,
        decoder_width: int = 768,
        decoder_activation: Activation = "leaky_relu",
        translation: TranslationName = "linear",
        head: Head = "patch",
        ensemble: bool = False,
        masks: bool = False,
        patch: int = PATCH,
        target_eps: float = 1e-6,
        space: Space | None = None,
    ) -> None:
        if frames_out < 1:
            raise ValueError(f"{frames_out} frames to forecast; expected at least 1")
        if head not in ("patch", "direct", "residual", *CARRIED):
            raise ValueError(f"head is {head!r}; expected 'patch', 'direct', 'residual', 'advected' or 'cascade'")
        if head in CARRIED and space is None:
            raise ValueError(f"head {head!r} finds motion from rain in mm/h; give the space of the frames")
        if ensemble and head != "cascade":
            raise ValueError(f"head {head!r} draws no members; expected 'cascade' for an ensemble")

        # What is carried needs two fields a lead time: what grows on the moving rain, and what comes in on the way.
        super().__init__(
            encoder,
            out_chans=2 * frames_out if head in CARRIED else frames_out,
            decoder_width=decoder_width,
            decoder_activation=decoder_activation,
            patch=patch,
            target_eps=target_eps,
        )

        self.frames_in, self.frames_out = encoder.in_chans, frames_out
        self.head, self.masks, self.space = head, masks, space
        self.blend = Blend(frames_out) if head == "advected" else None
        self.cascade = Cascade(frames_out) if head == "cascade" else None
        # How much noise the decoder's features ask for: a layer of its own, so that a forecast without keeps its last.
        self.members = Members(frames_out) if ensemble else None
        self.noise_proj = nn.Conv2d(self.dense_decoder.proj.in_channels, NUM_LEVELS, 1) if ensemble else None
        self.transition = build_translation(translation, tuple(reversed(encoder.channels)))
        self.frozen: Frozen = "none"
        self.part_px: int | None = None
        self.reset_projection()
        self.mask_tokens.requires_grad_(masks)

    def forward(
        self,
        frames_bthw: Tensor,
        visible_bv: Tensor | None = None,
        valid_bthw: Tensor | None = None,
        depth_keep_kb: Tensor | None = None,
        noise: Noise | None = None,
        leads: tuple[int, ...] | None = None,
    ) -> Tensor:
        """Forecast one field a lead time, or members.

        Args:
            frames_bthw: the past, model space, 0 where missing; height and width are multiples of the patch.
            visible_bv: int64, flat positions of the patches that the encoder sees, sorted; None: all, without packing.
            valid_bthw: bool, False where a pixel is missing; None: none is.
            depth_keep_kb: stochastic depth, see `Encoder.forward_packed`.
            noise: of the members, for an ensemble.
            leads: numbers of the lead times that members are made of, rising, from 0; None: all.

        Returns:
            (b, frames_out, h, w), or members (b, members, leads, h, w), model space, float32 at least, without bounds.

        Raises:
            ValueError: shapes that do not fit each other, a mask although `masks` is off, or noise for one that is no
                ensemble.
        """
        grid_hw = self.grid_of(frames_bthw, visible_bv, valid_bthw)
        if noise is not None and self.members is None:
            raise ValueError("noise was given to a model that is no ensemble; build it with ensemble=True")

        # What is carried: the encoder sees the past as somebody sees it who moves with the rain.
        carried = None
        seen_bthw = frames_bthw
        if self.head in CARRIED:
            assert self.space is not None
            carried = carry(frames_bthw, valid_bthw, self.frames_out, self.space)
            seen_bthw = carried.past_bthw

        if visible_bv is None:
            decoded_bthw = self._decoded(seen_bthw, depth_keep_kb)
        else:
            decoded_bthw = self._image(self._maps_of_visible(seen_bthw, visible_bv, grid_hw, depth_keep_kb))
        if carried is None:
            return self._frames(decoded_bthw, frames_bthw, valid_bthw, grid_hw)

        start = self._start(decoded_bthw, carried)
        return self._moved(start) if noise is None else self.members_of(start, noise, leads)

    def start(self, frames_bthw: Tensor, valid_bthw: Tensor | None) -> "Start":
        """Compute all that members have in common, once a window; `members_of` makes them, a few at a time.

        Args:
            frames_bthw: see `forward`.
            valid_bthw: see `forward`.
        """
        assert self.space is not None
        carried = carry(frames_bthw, valid_bthw, self.frames_out, self.space)
        return self._start(self._decoded(carried.past_bthw, None), carried)

    def members_of(self, start: "Start", noise: Noise, leads: tuple[int, ...] | None = None) -> Tensor:
        """Make members, (b, members, leads, h, w), model space, bounded above by what the past frames held.

        Args:
            start: what they have in common.
            noise: what they draw.
            leads: see `forward`.
        """
        assert self.members is not None
        assert start.levels_bshw is not None
        assert start.damping_bsl is not None
        assert start.log_factor_bshw is not None
        wanted = tuple(range(self.frames_out)) if leads is None else leads
        with torch.autocast(start.canvas_blhw.device.type, enabled=False):
            members_bmlhw: Tensor = self.members(
                start.canvas_blhw[:, wanted],
                start.levels_bshw,
                start.damping_bsl,
                start.log_factor_bshw,
                start.steps,
                noise,
                wanted,
            )
            members_bmlhw = members_bmlhw + start.entered_blhw[:, None, wanted]
            return torch.minimum(members_bmlhw, start.heaviest_b.view(-1, 1, 1, 1, 1))

    def train(self, mode: bool = True) -> Self:
        """Switch between training and evaluation; frozen parts stay in evaluation."""
        super().train(mode)
        for module in self._frozen_modules():
            module.eval()
        return self

    def freeze(self, parts: Frozen) -> None:
        """Take gradients and batch statistics from parts, and give them back to the others.

        Args:
            parts: `encoder`: sparse_encoder; `decoder`: dense_decoder, densify_norms, densify_projs, mask_tokens.
        """
        if parts not in ("none", "encoder", "decoder", "both"):
            raise ValueError(f"parts to freeze are {parts!r}; expected 'none', 'encoder', 'decoder' or 'both'")
        self.frozen = parts
        self.requires_grad_(True)
        self.mask_tokens.requires_grad_(self.masks)
        for module in self._frozen_modules():
            module.requires_grad_(False)
        self.train(self.training)

    def reset_projection(self) -> None:
        """Start the last layers anew, for `residual` and what is carried at 0: loaded weights were for another head."""
        projections = [self.dense_decoder.proj, *([] if self.noise_proj is None else [self.noise_proj])]
        for projection in projections:
            if self.head in ("residual", *CARRIED):
                nn.init.zeros_(projection.weight)
            else:
                nn.init.trunc_normal_(projection.weight, std=0.02)
            if projection.bias is not None:
                nn.init.zeros_(projection.bias)

    def set_checkpoint_blocks(self, recompute: bool) -> None:
        """Switch activation checkpointing of the encoder's, the translation's and the decoder's blocks."""
        super().set_checkpoint_blocks(recompute)
        self.transition.checkpoint_blocks = recompute

    def _frozen_modules(self) -> list[nn.Module]:
        modules: list[nn.Module] = []
        if self.frozen in ("encoder", "both"):
            modules.append(self.sparse_encoder)
        if self.frozen in ("decoder", "both"):
            modules += [self.dense_decoder, self.densify_norms, self.densify_projs, self.mask_tokens]
        return modules

    def _decoded(self, seen_bthw: Tensor, depth_keep_kb: Tensor | None) -> Tensor:
        """Encode, translate and decode whole frames; large ones part by part where `part_px` says so."""

        def network(part_bthw: Tensor) -> Tensor:
            features = self.sparse_encoder(part_bthw, depth_keep_kb)[::-1]
            maps = [self._project(level, x) for level, x in enumerate(self.transition(features))]
            return self._image(maps)

        if self.part_px is None:
            return network(seen_bthw)
        return in_parts(network, seen_bthw, self.part_px, OVERLAP_PX)

    def _image(self, maps: list[Tensor]) -> Tensor:
        """Decode maps to the fields of the head, and besides what an ensemble's noise is made with."""
        if self.noise_proj is None:
            image_bchw: Tensor = self.dense_decoder(maps)
            return image_bchw
        features_bchw = self.dense_decoder.features(maps)
        return torch.cat([self.dense_decoder.proj(features_bchw), self.noise_proj(features_bchw)], dim=1)

    def _project(self, level: int, features_bchw: Tensor) -> Tensor:
        return self.densify_projs[level](self.densify_norms[level](features_bchw))

    def _maps_of_visible(
        self, frames_bthw: Tensor, visible_bv: Tensor, grid_hw: tuple[int, int], depth_keep_kb: Tensor | None
    ) -> list[Tensor]:
        """The decoder's maps where some patches are hidden: mask tokens stand in their places.

        The translation sees zeros there; what it puts there is not used, as in the published order of steps.
        """
        if not self.masks:
            raise ValueError("a mask was given to a model without masks; build it with masks=True")
        layout = PatchLayout.from_positions(visible_bv, grid_hw)
        packed = self.sparse_encoder.forward_packed(frames_bthw, layout, depth_keep_kb)[::-1]
        if not isinstance(self.transition, IdentityTranslation):
            dense = [layout.dense(x, x.new_zeros(1, x.shape[1], 1, 1)) for x in packed]
            packed = [pack(x, visible_bv, grid_hw) for x in self.transition(dense)]
        maps = []
        for level, x in enumerate(packed):
            dense_bchw = layout.dense(self.densify_norms[level](x), self.mask_tokens[level])
            maps.append(self.densify_projs[level](dense_bchw))
        return maps

    def _start(self, decoded_bchw: Tensor, carried: Carried) -> "Start":
        """Put together what is carried along: the smoothed last frame and what grew on it; and what enters later."""
        with torch.autocast(decoded_bchw.device.type, enabled=False):
            decoded = decoded_bchw.to(carried.canvas_b1hw.dtype)
            grown, entered = decoded[:, : 2 * self.frames_out].chunk(2, dim=1)
            levels_bshw = damping_bsl = None
            if self.cascade is not None:
                smoothed_blhw, levels_bshw, damping_bsl = self.cascade(carried, self.space)
            else:
                assert self.blend is not None
                smoothed_blhw = self.blend(carried.canvas_b1hw)
            return Start(
                canvas_blhw=smoothed_blhw + F.pad(grown, (MARGIN_PX,) * 4, mode="replicate"),
                entered_blhw=entered,
                steps=carried.steps,
                levels_bshw=levels_bshw,
                damping_bsl=damping_bsl,
                log_factor_bshw=None if self.members is None else decoded[:, 2 * self.frames_out :],
                heaviest_b=self._heaviest(carried.past_bthw.to(decoded.dtype)),
            )

    def _heaviest(self, past_bthw: Tensor) -> Tensor:
        """Bound what members may rain, (b,), model space."""
        assert self.space is not None
        heaviest_mmh_b = HEAVIEST_SHARE * self.space.to_mmh(past_bthw.amax((1, 2, 3)))
        return self.space.from_mmh(heaviest_mmh_b.clamp(min=HEAVIEST_MMH))

    def _moved(self, start: "Start") -> Tensor:
        """Carry along what is the same for all members."""
        with torch.autocast(start.canvas_blhw.device.type, enabled=False):
            moved = [
                advect(start.canvas_blhw[:, lead : lead + 1], step, margin_px=MARGIN_PX)
                for lead, step in enumerate(start.steps)
            ]
            return torch.cat(moved, dim=1) + start.entered_blhw

    def _frames(
        self, decoded_bthw: Tensor, frames_bthw: Tensor, valid_bthw: Tensor | None, grid_hw: tuple[int, int]
    ) -> Tensor:
        """What the decoder's output stands for, in float32 at least whatever autocast made of it."""
        wide = torch.promote_types(frames_bthw.dtype, torch.float32)
        decoded, frames = decoded_bthw.to(wide), frames_bthw.to(wide)
        if self.head == "direct":
            return decoded
        if self.head == "residual":
            return frames[:, -1:] + decoded
        valid_blp = None if valid_bthw is None else patchify(valid_bthw.to(wide), self.patch)
        mean_bl1, deviation_bl1 = patch_moments(patchify(frames, self.patch), valid_blp, self.target_eps)
        return place_moments(decoded, mean_bl1, deviation_bl1, grid_hw)

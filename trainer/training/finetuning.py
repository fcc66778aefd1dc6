"""Train a nowcaster: `accelerate launch trainer/finetune.py --config configs/x.yaml --data.shards S --run.dir R`."""

import logging
import math
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

from ...data.errors import ConfigError
from ...data.exit_codes import ExitCode
from ...models.nowcasting.nowcaster import Nowcaster
from ...models.nowcasting.smaat_unet import SmaAtUNet
from ...models.weights.manifest import BEST_FOLDER, CHECKPOINTS_FOLDER, CheckpointError, step_folders
from ...models.weights.transfer import InitReport, init_from
from ..checkpoint.folder import Loaded, load, save
from ..checkpoint.seen import SeenFrames, state_beside
from ..checkpoint.state import TrainState
from ..forecasting.build import build_nowcaster
from ..processes.agreement import on_main
from ..record.folder import EVALUATED
from ..settings.experiment import FinetuneConfig
from ..settings.parse import as_dict
from .nowcast_held_out import NONFINITE, NowcastHeldOut
from .nowcast_task import NowcastTask, build_nowcast_task
from .run import TrainingRun, run_training
from .windows import window_times

LOG = logging.getLogger(__name__)
CHOICES = {"csi": ("held_out_csi", 1), "mse": ("held_out_mse", -1), "loss": (EVALUATED, -1)}
"""The metric of each way to choose the best checkpoint, and whether more of it is better (1) or less (-1)."""
KEPT_BEST = 2
COUNTER = ".num_batches_tracked"
LAST_LAYER = {"spat_spark": "dense_decoder.proj.", "smaat_unet": "proj."}
"""Beginning of the names of the layer that follows the number of frames to forecast."""


class Finetuning(TrainingRun[FinetuneConfig]):
    """One fine-tuning run, built from its configuration; every rank has one.

    Args:
        config: The run.
        engine: Started processes.
        stop: Returns whether this rank was asked to stop.
    """

    model: Nowcaster | SmaAtUNet
    task: NowcastTask
    best: tuple[int, float] | None = None
    """Step and value of the best checkpoint so far."""

    def build_model(self) -> Nowcaster | SmaAtUNet:
        """Build the nowcaster."""
        return build_nowcaster(self.config.model)

    def build_task(self) -> NowcastTask:
        """Build the forecast's loss."""
        return build_nowcast_task(self.config, self.model)

    def build_held_out(self) -> NowcastHeldOut:
        """Build the validation scores and their picture."""
        return NowcastHeldOut(self.config, self.engine, self.windows, self.task)

    def start_from(self, source: Path) -> InitReport:
        """Take over a pretrained run's, a nowcaster's or a published checkpoint's weights.

        The decoder's last layer stays as it was made where the checkpoint's stood for something else, or for other
        frames: a forecast's `residual` is no patch of normalised rain, even in the same shape.

        Raises:
            ConfigError: That layer would be frozen as it was made, or the weights have seen the test part.
        """
        last = LAST_LAYER[self.config.model.name]
        origin = state_beside(source)
        if origin is not None:
            self._compare_with(origin, source)

        # Where the last layer stood for something else, it starts anew, and is reported as not used.
        fresh = {name: tensor.clone() for name, tensor in self.model.state_dict().items() if name.startswith(last)}
        report = init_from(self.model, source, may_differ=(last,))
        if isinstance(self.model, Nowcaster) and _head_of(origin) != self.config.model.head:
            self.model.load_state_dict(fresh, strict=False)
            started_anew = tuple(name for name in report.loaded if name in fresh)
            report = replace(
                report,
                loaded=tuple(name for name in report.loaded if name not in fresh),
                missing=report.missing + started_anew,
                unused=report.unused + started_anew,
            )
        self._check_frozen(report)
        return report

    def _compare_with(self, origin: TrainState, source: Path) -> None:
        """Compare what tensors do not say: which frames they have seen, in which space, before which activation."""
        own = as_dict(self.config)["model"]
        theirs = origin.config.get("model", {})
        for key in ("space", "decoder_activation"):
            if key in theirs and theirs[key] != own[key]:
                LOG.warning(
                    f"init_from: {source} was trained with model.{key} {theirs[key]}, and this run has {own[key]}: its "
                    f"features stand for other values; set model.{key} alike unless that is meant"
                )

        # Times of different radar products say nothing about shared frames.
        if origin.data.get("source") != self.windows.index.source:
            return
        seen = SeenFrames.read(origin.data)
        for split, table in (("validation", self.windows.held_out), ("test", self.windows.test)):
            if seen is None or table is None:
                continue
            shared = seen.shared("train", window_times(self.windows.index, table), str(source))
            if shared is None:
                continue
            finding = f"init_from: in the {split} part of this run {shared}"
            if split == "test":
                raise ConfigError(
                    f"{finding}: a score there would say how well it remembers. Start from a run that held it out (the "
                    "same data.test_share, validation_share and guard_h), or state another data.test_times"
                )
            LOG.warning("%s: the best checkpoint is chosen on frames that its weights have seen", finding)

    def _check_frozen(self, report: InitReport) -> None:
        """Refuse to freeze what the checkpoint does not give."""
        config = self.config.model
        # What is frozen is set by names; the densify layers and mask tokens go with the decoder that they feed.
        prefixes = {"encoder": ("sparse_encoder.",), "decoder": ("dense_decoder.", "densify_")}
        if config.mask_ratio > 0:
            prefixes["decoder"] += ("mask_tokens.",)
        frozen = tuple(name for half in prefixes if config.freeze in (half, "both") for name in prefixes[half])
        trained = {name for name, parameter in self.model.named_parameters() if parameter.requires_grad}
        unset = [
            name
            for name in report.missing
            if name.startswith(frozen) and name not in trained and not name.endswith(COUNTER)
        ]
        if unset:
            raise ConfigError(
                f"model.freeze is {config.freeze}, but {report.source} gives no weights for {', '.join(unset[:3])} "
                f"({len(unset)} tensors): they would stay as they were drawn; freeze less, or start from another"
            )

    def title(self) -> str:
        """Name the model."""
        config = self.config.model
        if config.name == "smaat_unet":
            return f"SmaAt-UNet, {config.frames_in} frames in, {config.frames_out} out"
        frozen = "" if config.freeze == "none" else f", frozen: {config.freeze}"
        return (
            f"{config.encoder}, translation {config.translation}, head {config.head}, {config.frames_in} frames in, "
            f"{config.frames_out} out{frozen}"
        )

    def resumed(self, saved: Loaded | None) -> None:
        """Take up the best checkpoint so far; a later one than the step that is gone on from was of another future."""
        config = self.config
        if saved is None and config.model.freeze != "none" and config.init_from is None:
            raise ConfigError(
                f"model.freeze is {config.model.freeze}, but there is no init_from: what is frozen would stay as it "
                "was drawn; set init_from, or freeze nothing"
            )
        if self.windows.held_out is None:
            LOG.info("nothing is held out: no checkpoint is chosen as the best, and the last one counts")
        step = 0 if saved is None else saved.state.step
        self.best = on_main(self.engine, lambda: self._best_until(step))

    def _best_until(self, step: int) -> tuple[int, float] | None:
        chosen = [path for number, path in step_folders(self._best_folder) if number <= step]
        if not chosen:
            return None

        state = load(chosen[0]).state
        name, _ = CHOICES[self.config.run.choose_by]
        value = state.metrics.get(name)
        if not isinstance(value, float):
            raise CheckpointError(
                f"{chosen[0]}: does not record {name}, by which it was chosen; remove {self.folder / BEST_FOLDER} to "
                "go on without it"
            )

        # A score of other windows is another quantity, and the run would compare the two from here on.
        before = state.config["data"]["evaluation_windows"]
        now = self.config.data.evaluation_windows
        if before != now:
            raise CheckpointError(
                f"{chosen[0]}: chosen on data.evaluation_windows {before}, and {now} are asked for: the two cannot be "
                "compared; set it back, or choose a new run.dir and --init_from this run"
            )
        return state.step, value

    @property
    def _best_folder(self) -> Path:
        return self.folder / BEST_FOLDER / CHECKPOINTS_FOLDER

    def discard_after(self, step: int) -> None:
        """Remove the best checkpoints of an abandoned future."""
        for number, path in step_folders(self._best_folder):
            if number > step:
                shutil.rmtree(path)

    def evaluated(self, finished: int, metrics: dict[str, float]) -> None:
        """Keep the evaluated weights where they are the best so far on the validation part."""
        name, sign = CHOICES[self.config.run.choose_by]
        value = metrics.get(name, math.nan)
        # A model that forecasts no numbers somewhere is never the best, whatever its scores elsewhere.
        if metrics.get(NONFINITE):
            LOG.warning("step %d: %d forecast values are no number; not the best", finished, metrics[NONFINITE])
            return
        if metrics and not math.isfinite(value):
            reason = f"{name} is {value} (no rain in the validation part?)"
            LOG.warning("step %d: %s; no checkpoint can be chosen by it", finished, reason)
        if not math.isfinite(value) or (self.best is not None and sign * value <= sign * self.best[1]):
            return

        # The average stands in the model's place while it is evaluated, and that is what was judged.
        exported = self.engine.export_state()
        figures = {key: figure for key, figure in metrics.items() if math.isfinite(figure)}
        state = replace(self.state_of(finished), metrics=figures)

        # A run that is killed goes on from its last checkpoint: what was the best then has to be there still.
        newer = sum(number > self.saver.last_saved for number, _ in step_folders(self._best_folder))
        folder = self.folder / BEST_FOLDER
        on_main(self.engine, lambda: save(folder, state, exported.model, {}, keep_last=KEPT_BEST + newer))
        self.best = (finished, value)
        LOG.info("step %d: the best so far, %s %.4f", finished, name, value)

    def more_places(self) -> dict[str, str]:
        """Name the best checkpoint, and the command that scores it."""
        places = {}
        if self.best is not None:
            step, value = self.best
            name, _ = CHOICES[self.config.run.choose_by]
            places["best"] = f"{self.folder / BEST_FOLDER} (step {step}, {name} {value:.4f})"

        # The best checkpoint was chosen by the validation part: its scores there flatter.
        split = next((name for name in ("test", "validation") if self.windows.spans[name]), None)
        if split is None:
            return places

        # Scores are made of one source.
        data = self.config.data
        sources = self.windows.index.sources
        is_mixed = len(sources) > 1 or data.source is not None
        chosen = f"--data.source {shlex.quote(sources[0])} " if is_mixed else ""
        places["score it"] = (
            f"rainspark evaluate --data.shards {shlex.quote(data.shards)} {chosen}--split {split} "
            f"--models {shlex.quote(str(self.folder))} persistence --out {shlex.quote(str(self.folder / 'scores'))}"
        )
        return places


def _head_of(origin: TrainState | None) -> str:
    """Look up what the decoder's output stood for in the model of some weights.

    A nowcaster's state says it. Pretraining gives normalised patches, which is the published head, and so do the
    published files.
    """
    head: str = "patch" if origin is None else origin.config.get("model", {}).get("head", "patch")
    return head


def run(config: FinetuneConfig) -> ExitCode:
    """Train as the settings say."""
    return run_training(Finetuning, config)

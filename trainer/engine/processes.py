"""The processes of a run: started under Accelerate from what the launcher left in the environment, and stopped."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedDataParallelKwargs, PartialState
from accelerate.state import AcceleratorState, GradientState
from torch.distributed.distributed_c10d import PrefixStore

from ...data.command import read_variable
from ...data.errors import ConfigError
from ..processes.heartbeat import Heartbeat
from ..processes.rendezvous import Address, meet
from ..settings.engine import EngineConfig

AUTOCAST_DTYPES: dict[str, torch.dtype | None] = {
    "fp32": None,
    "fp64": None,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
# What `accelerate launch` (1.15) writes when nothing was asked for.
_LAUNCHER_DEFAULTS = frozenset({"", "no", "none", "auto", "false", "0"})
# Set here only, and put back when the processes stop, so that a second engine starts from a clean environment.
_OURS = ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_CPU", "LOCAL_RANK", "DS_ACCELERATOR", "RANK", "WORLD_SIZE")


def check_launcher(config: EngineConfig, environment: Mapping[str, str]) -> None:
    """Refuse settings of `accelerate launch` that contradict ours; what it writes by default is none.

    Raises:
        ConfigError: A contradiction, with both values.
    """
    stage = "null" if config.zero_stage is None else str(config.zero_stage)
    expected = {
        "MIXED_PRECISION": (config.precision, f"engine.precision={config.precision}"),
        "DYNAMO_BACKEND": ("inductor" if config.compile else "", f"engine.compile={str(config.compile).lower()}"),
        "GRADIENT_ACCUMULATION_STEPS": ("1", "data.global_batch / data.micro_batch"),
        "USE_CPU": ("true" if config.device != "cuda" else "", f"engine.device={config.device}"),
        "USE_FSDP": ("", "no FSDP: engine.zero_stage shards"),
        "USE_MEGATRON_LM": ("", "no Megatron"),
        "USE_PARALLELISM_CONFIG": ("", "data parallelism only"),
        "DEEPSPEED_CONFIG_FILE": ("", "no DeepSpeed file: its configuration is derived from ours"),
        "DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": ("", "no offloading"),
        "DEEPSPEED_OFFLOAD_PARAM_DEVICE": ("", "no offloading"),
        "USE_DEEPSPEED": ("true" if config.zero_stage is not None else "", f"engine.zero_stage={stage}"),
    }
    for name, (allowed, ours) in expected.items():
        value = _asked(name, environment)
        if value not in (None, allowed, {"true": "1"}.get(allowed)):
            _refuse(name, value, ours)

    # 0 is a stage, not a default.
    theirs = environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "").strip().lower()
    if theirs not in ("", "none", "auto", stage):
        _refuse("DEEPSPEED_ZERO_STAGE", theirs, f"engine.zero_stage={stage}")


def check_clipping(clip_norm: float | None, environment: Mapping[str, str]) -> None:
    """Refuse a gradient clipping of `accelerate launch` that is not ours.

    Raises:
        ConfigError: A contradiction, with both values.
    """
    theirs = _asked("GRADIENT_CLIPPING", environment)
    if theirs is None:
        return
    try:
        same = clip_norm is not None and float(theirs) == clip_norm
    except ValueError:
        same = False
    if not same:
        _refuse("GRADIENT_CLIPPING", theirs, f"optim.clip_norm={'null' if clip_norm is None else clip_norm}")


def _asked(name: str, environment: Mapping[str, str]) -> str | None:
    value = environment.get(f"ACCELERATE_{name}", "").strip().lower()
    return None if value in _LAUNCHER_DEFAULTS else value


def _refuse(name: str, theirs: str | None, ours: str) -> NoReturn:
    raise ConfigError(
        f"accelerate launch asks for ACCELERATE_{name}={theirs}, our configuration says {ours}; set it in our "
        "configuration only and drop it from the launch command and from Accelerate's own configuration file"
    )


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Which process of the run this is.

    Attributes:
        rank: 0 to world_size - 1.
        world_size: Processes of the run.
        local_rank: Rank on this machine.
    """

    rank: int
    world_size: int
    local_rank: int


MOST_RANKS = 100_000
"""More than any machine has; a world that is larger is a mistake, for which all would wait."""


def read_identity(environment: Mapping[str, str]) -> Identity:
    """Read RANK, WORLD_SIZE and LOCAL_RANK as torchrun, `accelerate launch` and our Slurm scripts set them.

    Raises:
        ConfigError: Some of them are there and others are not, or they contradict; or `accelerate launch` was asked
            for several processes and, without a GPU, started one.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    values = {name: environment[name] for name in names if environment.get(name)}
    if not values.keys() - {"LOCAL_RANK"}:
        if "ACCELERATE_MIXED_PRECISION" in environment and "MASTER_PORT" in environment:
            raise ConfigError(
                "accelerate launch was asked for several processes, but without a GPU it starts only one; add "
                "--multi_gpu to its options, which starts them all on the CPU too"
            )
        # Nothing of ours, but Accelerate reads it.
        read_variable(environment, "LOCAL_RANK", default=0)
        return Identity(rank=0, world_size=1, local_rank=0)

    if absent := [name for name in names if name not in values]:
        raise ConfigError(
            f"the launcher set {', '.join(values)} but not {', '.join(absent)}; all three are needed, or none for one "
            "process"
        )
    own = Identity(**{name.lower(): read_variable(environment, name, most=MOST_RANKS) for name in names})
    if own.rank >= own.world_size:
        raise ConfigError(f"RANK={own.rank}, LOCAL_RANK={own.local_rank} do not fit WORLD_SIZE={own.world_size}")
    if own.world_size > 1 and (absent := [n for n in ("MASTER_ADDR", "MASTER_PORT") if not environment.get(n)]):
        raise ConfigError(f"WORLD_SIZE is {own.world_size}, but {', '.join(absent)} is not set: ranks cannot meet")
    return own


class Processes:
    """The started processes of a run: their group, this one's device, and Accelerate's state.

    Args:
        config: The engine's configuration.
        stop_asked: Returns whether this process was asked to stop while it waits for the others.

    Attributes:
        identity: Which process this is.
        device: Where it computes.
        heartbeat: What it does, published to all.

    Raises:
        ConfigError: The environment does not fit the configuration.
        RankEndedError: Not all processes came.
    """

    heartbeat: Heartbeat

    def __init__(self, config: EngineConfig, stop_asked: Callable[[], bool]) -> None:
        check_launcher(config, os.environ)
        self.identity = read_identity(os.environ)
        self.device = _device(config, self.identity)
        self._saved = {name: os.environ.get(name) for name in _OURS}
        self._owns_group = False

        plugin = None
        if config.zero_stage is not None:
            # DeepSpeed takes seconds to import; who does not use it does not wait.
            from .zero import make_plugin

            plugin = make_plugin(config, self.device.type)
        self._start_group(config, stop_asked)
        self.accelerator = self._start_accelerate(plugin)
        self._verify(config)

    @property
    def group(self) -> dist.ProcessGroup | None:
        """The group of all ranks, None where there is one process."""
        return dist.group.WORLD if self.identity.world_size > 1 else None

    def _start_group(self, config: EngineConfig, stop_asked: Callable[[], bool]) -> None:
        """Make the process group, and this rank's heartbeat."""
        own = self.identity
        make_heartbeat = partial(
            Heartbeat,
            own.rank,
            own.world_size,
            timeout_s=config.timeout_s,
            start_timeout_s=config.start_timeout_s,
        )
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)

        # Accelerate makes a group wherever it sees LOCAL_RANK, with a timeout of its own.
        needs_group = own.world_size > 1 or config.zero_stage is not None or os.environ.get("LOCAL_RANK")
        if dist.is_initialized() or not needs_group:
            self.heartbeat = make_heartbeat()
            return
        backend = "nccl" if self.device.type == "cuda" else "gloo"
        self._owns_group = True

        # DeepSpeed wants a group of one process too; this one needs no port.
        if own.world_size == 1:
            self.heartbeat = make_heartbeat()
            alone = dist.HashStore()  # type: ignore[attr-defined]
            dist.init_process_group(backend, store=alone, rank=0, world_size=1)
            return

        address = Address.read(own.rank, own.world_size, os.environ)
        store = meet(address, config.start_timeout_s, stop_asked)
        self.heartbeat = make_heartbeat(
            connect=lambda: address.connect(config.start_timeout_s, may_host=False),
            holder=address.holder,
            hosts_store=own.rank == 0 and not address.launchers,
        )
        # The watch speaks first: it knows which rank is late, and a collective does not.
        timeout = timedelta(seconds=max(config.timeout_s, config.start_timeout_s) + 60)
        store.set_timeout(timeout)
        dist.init_process_group(
            backend,
            store=PrefixStore("group", store),
            rank=own.rank,
            world_size=own.world_size,
            timeout=timeout,
            device_id=self.device if self.device.type == "cuda" else None,
        )

    def _start_accelerate(self, deepspeed_plugin: Any) -> Accelerator:
        on_cpu = self.device.type == "cpu"
        options: dict[str, Any] = {"backend": "gloo"} if on_cpu and os.environ.get("LOCAL_RANK") else {}
        # Set again below where DeepSpeed is ours: before PartialState it would start a second group.
        os.environ.pop("ACCELERATE_USE_DEEPSPEED", None)
        PartialState(cpu=on_cpu, **options)
        if deepspeed_plugin is not None:
            # Asked for a CPU, Accelerate takes DDP silently: with DeepSpeed it must not know that this is one.
            os.environ["ACCELERATE_USE_CPU"] = "false"
            os.environ.setdefault("RANK", str(self.identity.rank))
            os.environ.setdefault("WORLD_SIZE", str(self.identity.world_size))
            os.environ.setdefault("LOCAL_RANK", str(self.identity.local_rank))
        return Accelerator(
            cpu=on_cpu and deepspeed_plugin is None,
            mixed_precision="no",
            dynamo_backend="no",
            deepspeed_plugin=deepspeed_plugin,
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)],
        )

    def _verify(self, config: EngineConfig) -> None:
        """Check that the right processes and engine run.

        Wrong starts are silent: every rank believes that it is rank 0 of 1, or DDP runs where ZeRO was asked for.
        """
        accelerator = self.accelerator
        plugin = accelerator.state.deepspeed_plugin
        stage = None if plugin is None else plugin.zero_stage
        started = (accelerator.num_processes, accelerator.process_index, accelerator.device.type, stage)
        expected = (self.identity.world_size, self.identity.rank, self.device.type, config.zero_stage)
        if started != expected:
            raise ConfigError(
                f"Accelerate started as (processes, rank, device, ZeRO stage) {started}, expected {expected} from the "
                "environment and the settings; check the launch command"
            )

    def stop(self, *, clean: bool) -> None:
        """Leave the group; with `clean` False without any collective, for the other ranks may be gone.

        A clean stop waits for all ranks and destroys the process group that this object made. After an error the
        group is left to the end of the process: destroying it could wait for ranks that never come.
        """
        if clean:
            self._part()
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        for name, value in self._saved.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

    def _part(self) -> None:
        """Leave together: first all have come to the end, then nobody uses the store any more."""
        owns = self._owns_group and dist.is_initialized()
        device_ids = [self.device.index] if self.device.type == "cuda" else None
        if owns:
            dist.barrier(device_ids=device_ids)
        self.heartbeat.close()
        if owns:
            # A rank that leaves early closes connections under the others' last collective.
            dist.barrier(device_ids=device_ids)
            dist.destroy_process_group()


def _device(config: EngineConfig, identity: Identity) -> torch.device:
    forced_cpu = os.environ.get("ACCELERATE_USE_CPU", "").strip().lower() in ("true", "1")
    if config.device == "cpu" or forced_cpu or (config.device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError("engine.device=cuda, but torch finds no CUDA device; use engine.device=auto or cpu")
    if identity.local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"LOCAL_RANK {identity.local_rank}, but this machine shows {torch.cuda.device_count()} GPUs; start one "
            "process a GPU, or use engine.device=cpu"
        )
    return torch.device("cuda", identity.local_rank)

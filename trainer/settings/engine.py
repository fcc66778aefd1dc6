"""Settings of processes, precision and DeepSpeed."""

from dataclasses import dataclass
from typing import Literal

from ...data.errors import ConfigError
from .ranges import check_number

Precision = Literal["fp32", "bf16", "fp16", "fp64"]


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Processes, precision and DeepSpeed.

    Args:
        zero_stage: DeepSpeed's ZeRO stage, 0 to 3. Null: PyTorch's DistributedDataParallel, without DeepSpeed.
        precision: `bf16` and `fp16` run the forward pass under autocast and keep fp32 parameters; `fp64` is for tests.
        compile: Run the model through torch.compile.
        channels_last: Keep images and, without ZeRO, convolution weights in channels-last layout.
        device: `auto` takes the GPU where there is one.
        timeout_s: Seconds that a process may make no progress, waiting for another rank or not, above 0; then all end
            with a text that names the rank that is late. The longest single operation counts: compiling the first
            step, the data of one step, writing one checkpoint.
        start_timeout_s: Seconds that the processes wait for each other to start, above 0.
    """

    zero_stage: Literal[0, 1, 2, 3] | None = None
    precision: Precision = "fp32"
    compile: bool = False
    channels_last: bool = False
    device: Literal["auto", "cpu", "cuda"] = "auto"
    timeout_s: float = 1800.0
    start_timeout_s: float = 600.0

    def __post_init__(self) -> None:
        """Check what needs neither processes nor a device."""
        check_number("engine.timeout_s", self.timeout_s, above=0)
        check_number("engine.start_timeout_s", self.start_timeout_s, above=0)
        # What DeepSpeed cannot do is refused before processes start.
        if self.zero_stage is not None and self.precision == "fp64":
            raise ConfigError(
                f"engine.precision=fp64 with engine.zero_stage={self.zero_stage}: DeepSpeed keeps fp32 master weights; "
                "use engine.zero_stage=null"
            )
        if self.zero_stage == 3 and self.compile:
            raise ConfigError(
                "engine.compile=true with engine.zero_stage=3: ZeRO 3 gathers weights in hooks of every module, which "
                "torch.compile does not trace; use stage 0 to 2, or engine.compile=false"
            )

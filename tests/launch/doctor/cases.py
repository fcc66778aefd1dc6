"""What the doctor's tests share: a job to ask about, and places that really fail."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rainspark.launch.doctor.findings import Finding, Job
from rainspark.trainer.settings.experiment import PretrainConfig
from rainspark.trainer.settings.parse import parse_config
from tests.integration.runs import arguments


def job_of(shards: Path, run: Path, *, world_size: int = 1, **overrides: object) -> Job:
    """Ask about the smallest run; `job__lead_s` and the like set fields of the job itself."""
    own = {key.removeprefix("job__"): value for key, value in overrides.items() if key.startswith("job__")}
    rest = {key: value for key, value in overrides.items() if not key.startswith("job__")}
    fields: dict[str, Any] = {"lead_s": 180.0, "sample": 4, "device_memory_gb": None}
    fields |= {"world_size": world_size, "ranks_per_node": world_size}
    config = parse_config(arguments(shards, run, **rest), PretrainConfig, prog="test")
    return Job(config=config, **(fields | own))


def levels(findings: Sequence[Finding]) -> list[str]:
    """Give the levels, in order."""
    return [finding.level for finding in findings]


def failure(findings: Sequence[Finding]) -> Finding:
    """Give the one failure among them."""
    failures = [finding for finding in findings if finding.level == "FAIL"]
    assert len(failures) == 1, [str(finding) for finding in findings]
    return failures[0]

"""`sbatch launch/multinode.sh` on a real two-node cluster, in short; test_slurm.py has what may happen to jobs."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from rainspark.models.weights.manifest import latest_verified
from rainspark.trainer.settings.experiment import PretrainConfig
from rainspark.trainer.settings.parse import as_dict, parse_config
from tests.conftest import REPOSITORY
from tests.integration.runs import arguments, make_shards
from tests.slurm import processes_of, running


@pytest.mark.parametrize("per_node", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_sbatch_trains_on_both_nodes_and_leaves_nothing_behind(shared_dir: Path, tmp_path: Path, per_node: int) -> None:
    if shutil.which("slurmctld") is None:
        pytest.skip("Slurm (slurm-wlm, munge) is not installed")
    shards = make_shards(tmp_path / "storms", hours=3)
    config = tmp_path / "tiny.yaml"
    words = arguments(shards, tmp_path, run__steps=2, optim__warmup_steps=1, run__evaluate_every=1000)
    settings = as_dict(parse_config(words, PretrainConfig, prog="test"))
    # What the environment and the job give where a configuration does not.
    del settings["data"]["shards"], settings["run"]["dir"]
    config.write_text(yaml.safe_dump(settings))
    tracking = "cgroup" if os.access("/sys/fs/cgroup/freezer", os.W_OK) else "linuxproc"
    with running(shared_dir / "tools", tracking) as cluster:
        options = ["--nodes=2", f"--gpus-per-node={per_node}", f"--output={tmp_path}/%x-%j.log"]
        # As some sites ask for: srun would hand on no more than this, too.
        options += ["--export=SLURM_CONF,PATH,RAINSPARK_HOME,RAINSPARK_SHARDS"]
        script = [str(REPOSITORY / "launch" / "multinode.sh"), "--python", sys.executable]
        submit = ["sbatch", "--parsable", *options, *script, "tiny.yaml", "--optim.lr", "2e-3"]
        more = {"RAINSPARK_HOME": str(REPOSITORY), "RAINSPARK_SHARDS": str(shards)}
        job_id = cluster.call(*submit, cwd=tmp_path, **more).strip()
        run = tmp_path / "runs" / f"rainspark-{job_id}"
        record = cluster.wait_for_state(job_id, "COMPLETED", "FAILED")
        log = (tmp_path / f"rainspark-{job_id}.log").read_text()
        assert (record["JobState"], record["NumNodes"]) == ("COMPLETED", "2"), log
        assert processes_of(str(tmp_path)) == []
    assert f"{2 * per_node} process(es)" in log, "one a GPU"
    assert yaml.safe_load((run / "config.yaml").read_text())["optim"]["lr"] == 2e-3
    launches = [json.loads(line) for line in (run / "launches.jsonl").read_text().splitlines()]
    assert [entry["event"] for entry in launches] == ["start", "end", "verdict"]
    assert launches[0]["hosts"] == ["node0", "node1"]
    assert launches[1]["step"] == 2
    newest = latest_verified(run / "checkpoints")
    assert newest is not None
    assert newest.name == "step-00000002"

#!/usr/bin/env bash
#SBATCH --job-name=rainspark
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR2@180
#SBATCH --ntasks-per-node=1
set -euo pipefail

usage() {
  cat <<'TEXT'
Train on all nodes of a Slurm allocation, one srun task a rank.

  sbatch [SBATCH OPTIONS] launch/multinode.sh [OPTIONS] [CONFIG] [--key.sub VALUE ...]

Account, partition, nodes, GPUs and time are sbatch's own options. OPTIONS, before the configuration:
  --entry pretrain|finetune        what to train (default: pretrain)
  --modules "A B"                  environment modules to load
  --python PATH                    interpreter, or folder of a virtual environment (default: REPOSITORY/.venv, else python3)
  --ranks-per-node N               default: one a GPU of the node, else sbatch's --ntasks-per-node
  --container IMAGE                run the ranks in an image
  --container-runtime apptainer|singularity|srun
  --container-python PATH          interpreter in the image (default: python3)
  --mounts HOST:INSIDE,...         for the container

CONFIG is a file or the name of a recipe. Without one: pretrain_resnet50, with overrides too; fine-tuning needs one. RAINSPARK_SHARDS gives
data.shards, RAINSPARK_RUN run.dir where the configuration does not (runs/JOBNAME-JOBID without it); RAINSPARK_HOME the
repository where sbatch was not called in it.
TEXT
}

die() {
  echo "launch/multinode.sh: $*" >&2
  exit 3
}

load_modules() {
  local place
  if ! type module >/dev/null 2>&1; then
    for place in "${LMOD_PKG:-/nowhere}/init/bash" "${MODULESHOME:-/nowhere}/init/bash" /etc/profile.d/lmod.sh /etc/profile.d/modules.sh; do
      if [[ -r $place ]]; then
        # shellcheck source=/dev/null
        source "$place"
        break
      fi
    done
  fi
  type module >/dev/null 2>&1 || die "--modules: this node has no 'module' command; leave the option out"
  local name
  for name in $1; do
    module load "$name" || die "--modules: $name cannot be loaded"
  done
}

passed=()
modules=""
python=""
while (($#)); do
  option=${1%%=*}
  case $1 in
    --help | -h) usage; exit 0 ;;
    --entry=* | --modules=* | --python=* | --ranks-per-node=* | --container=* | --container-runtime=* | --container-python=* | --mounts=*)
      value=${1#*=}
      shift
      ;;
    --entry | --modules | --python | --ranks-per-node | --container | --container-runtime | --container-python | --mounts)
      (($# > 1)) || die "$1 stands at the end without a value"
      value=$2
      shift 2
      ;;
    *) break ;;
  esac
  case $option in
    --modules) modules=$value ;;
    --python) python=$value ;;
    *) passed+=("$option" "$value") ;;
  esac
done

[[ -n ${SLURM_JOB_ID:-} ]] || die "this is a batch script: submit it with 'sbatch launch/multinode.sh' (or try --help)"
# Slurm runs a copy in its spool, so that this file's own place says nothing.
home=${RAINSPARK_HOME:-${SLURM_SUBMIT_DIR:-$PWD}}

if [[ -n $modules ]]; then
  # Scripts of module systems read variables that are not set, and end with codes of their own.
  set +eu
  load_modules "$modules"
  set -eu
fi
if [[ -z $python ]]; then
  python=$home/.venv/bin/python
  [[ -x $python ]] || python=$(command -v python3) || die "no python3 on this node; name one: --python PATH"
elif [[ -d $python ]]; then
  python=$python/bin/python
fi
command -v "$python" >/dev/null || die "--python: $python is no interpreter, seen from $(hostname)"

# An installed package outside of its repository is its own home.
installed=$("$python" -c 'import rainspark; print(rainspark.__path__[0])' 2>/dev/null) \
  || die "$python has no rainspark: run make in the repository, or name an interpreter that has it: --python PATH"
[[ -f $home/launch/job.py || -n ${RAINSPARK_HOME:-} ]] || home=$installed
# In place of this shell: Slurm's signals to the batch step reach what handles them. (Bash before 4.4 takes an empty
# array for one that is not set.)
exec "$python" -u -m rainspark.launch.job --home "$home" ${passed[@]+"${passed[@]}"} -- "$@"

#!/bin/bash
# One Slurm job: Ray's head and workers inside it, and one study. docs/cluster.md, 'Slurm'. Not yet measured on a real cluster.
#
#   export EMERGENCE_HOME=/shared/emergence         # seen by all nodes: results, and checkpoints beside them
#   sbatch clusters/slurm.sh sweeps/x.yaml --device cuda --slots-per-gpu 4
#
# From the project's folder, which all nodes see, after `make install`. The options are those of `emergence run`.
#SBATCH --job-name=emergence
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
##SBATCH --gpus-per-node=1
#SBATCH --exclusive                # Ray's ports are then free on every node
#SBATCH --time=04:00:00
#SBATCH --signal=B:USR1@180        # three minutes before the limit, to this script: every trunk saves, and the job is queued again
#SBATCH --requeue                  # after a preemption or a lost node, too: the study resumes
#SBATCH --open-mode=append
#SBATCH --output=emergence-%j.log
set -euo pipefail

study=${1:?give a study: sbatch clusters/slurm.sh sweeps/x.yaml}
shift
: "${EMERGENCE_HOME:?set EMERGENCE_HOME to a folder that all nodes see}"
export PATH="$PWD/.venv/bin:$PATH"
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
export RAY_TMPDIR="/tmp/ray-$SLURM_JOB_ID"          # short, since Ray's sockets have room for 107 bytes
export RAY_AUTH_TOKEN_PATH="$EMERGENCE_HOME/.ray-token-$SLURM_JOB_ID"
mkdir -p "$EMERGENCE_HOME" "$RAY_TMPDIR"
(umask 077 && head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n' > "$RAY_AUTH_TOKEN_PATH")

driver='' again=''
save() { [ -z "$driver" ] || kill -TERM "$driver" 2> /dev/null || true; }   # the driver stops every trunk, which saves
trap 'again=yes; save' USR1
trap save TERM INT
trap 'rm -rf "$RAY_AUTH_TOKEN_PATH" "$RAY_TMPDIR" || true' EXIT

# The head is this node: one core for the driver, the others train. Ray writes the head's address to a file.
cores=$((SLURM_CPUS_PER_TASK > 1 ? SLURM_CPUS_PER_TASK - 1 : 1))
ray start --head --port=0 --num-cpus="$cores" --dashboard-host=127.0.0.1 --dashboard-port=$((20000 + SLURM_JOB_ID % 10000))
address=$(cat "$RAY_TMPDIR/ray/ray_current_cluster")
others=$((SLURM_JOB_NUM_NODES - 1))
if [ "$others" -gt 0 ]; then
    # shellcheck disable=SC2016  # each node expands it
    srun --overlap --nodes="$others" --ntasks="$others" --exclude="${SLURMD_NODENAME:-$(hostname -s)}" bash -c \
        'trap "rm -rf $RAY_TMPDIR" EXIT; mkdir -p "$RAY_TMPDIR"; ray start --address="$0" --num-cpus="$SLURM_CPUS_PER_TASK" --block' "$address" &
    for _ in $(seq 60); do                          # a trial of several workers is refused if its nodes are not there yet
        [ "$(ray status --address "$address" 2> /dev/null | grep -c '^ 1 node_')" -gt "$others" ] && break
        sleep 5
    done
fi

emergence run "$study" --address auto "$@" &
driver=$!
until wait "$driver" && code=0 || code=$?; ! kill -0 "$driver" 2> /dev/null; do :; done   # a signal ends a wait early
if [ -n "$again" ] && [ "$code" -ne 0 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"

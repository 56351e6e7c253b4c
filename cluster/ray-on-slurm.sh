#!/usr/bin/env bash
# Start Ray on the nodes of a Slurm allocation, run one command on its first node with LAUNCH=ray, and stop Ray again:
#
#   sbatch --nodes=2 --gpus-per-node=8 --cpus-per-task=64 --time=1-00:00:00 cluster/ray-on-slurm.sh uv run dvc repro
#
# or, within `salloc`, run it directly. The nodes share the project's folder and its environment (.venv). The command is run again by
# hand or by `sbatch --requeue` after a time limit: trainings go on from their last checkpoint.
#SBATCH --job-name=ray
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
set -euo pipefail

if [ -z "${SLURM_JOB_NODELIST:-}" ]; then
    echo "error: run this by sbatch or within salloc" >&2
    exit 2
fi
if [ "$#" -eq 0 ]; then
    echo "error: name the command to run, such as: uv run dvc repro" >&2
    exit 2
fi

ray=${RAY:-.venv/bin/ray}
cpus=${SLURM_CPUS_ON_NODE:-$(nproc)}
gpus=${SLURM_GPUS_ON_NODE:-0}
patience=${RAY_PATIENCE:-300} # seconds in which all nodes must have joined
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
address=$(srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | awk '{print $1}')
# A port of this job's own, for two jobs may share a node.
port=$((20000 + SLURM_JOB_ID % 10000))
export RAY_raylet_start_wait_time_s=${RAY_raylet_start_wait_time_s:-$patience} # a busy node or disk takes longer than Ray's 30 s
export RAY_USAGE_STATS_ENABLED=0 RAY_AUTH_MODE=${RAY_AUTH_MODE:-token}
# Whoever reaches Ray's ports could run code as this user: a token that only this job's processes know keeps others out.
if [ "$RAY_AUTH_MODE" = token ] && [ -z "${RAY_AUTH_TOKEN:-}${RAY_AUTH_TOKEN_PATH:-}" ]; then
    RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
    export RAY_AUTH_TOKEN
fi

steps=()
on_node() { # NODE ARGUMENTS...: Ray on one node, as a step of the job that lives as long as this script
    local node=$1
    shift
    srun --overlap --nodes=1 --ntasks=1 --cpus-per-task="$cpus" --nodelist="$node" --kill-on-bad-exit=1 \
        "$ray" start --block --disable-usage-stats --num-cpus="$cpus" --num-gpus="$gpus" "$@" &
    steps+=("$!")
}
# By its steps, not by `ray stop`, which would end the Ray of every job on the node.
stop() {
    trap - EXIT INT TERM
    kill "${steps[@]}" 2>/dev/null || true
    wait "${steps[@]}" 2>/dev/null || true
}
trap stop EXIT
trap 'exit 143' INT TERM

on_node "$head" --head --node-ip-address="$address" --port="$port" --temp-dir="/tmp/ray-$SLURM_JOB_ID" --include-dashboard=false
until (: <"/dev/tcp/$address/$port") 2>/dev/null; do
    if ! kill -0 "${steps[0]}" 2>/dev/null || ((SECONDS > patience)); then
        echo "error: Ray did not start on $head: its reason is above" >&2
        exit 1
    fi
    sleep 1
done
for node in "${nodes[@]:1}"; do
    on_node "$node" --address="$address:$port"
done

export RAY_ADDRESS="$address:$port" LAUNCH=${LAUNCH:-ray}
joined() { "$(dirname "$ray")/python" -c 'import logging, ray
ray.init("auto", logging_level=logging.ERROR, log_to_driver=False)
print(sum(node["Alive"] for node in ray.nodes()))' 2>/dev/null || echo 0; }
until [ "$(joined)" -ge "${#nodes[@]}" ]; do
    if (($(jobs -rp | wc -l) < ${#steps[@]} || SECONDS > patience)); then
        echo "error: $(joined) of ${#nodes[@]} nodes joined Ray: the reason is above, or they need more than RAY_PATIENCE=$patience seconds" >&2
        exit 1
    fi
    sleep 1
done
echo "Ray runs on ${#nodes[@]} nodes at $RAY_ADDRESS: $*" >&2
"$@"

#!/usr/bin/env bash
# Run a module on PROCESSES GPUs (8) of each machine in HOSTS, the first of which is this one, as
# torchrun does on one: on_hosts.sh -m stages.train_drift_image. The others are reached by ssh.
set -euo pipefail
read -ra hosts <<< "${HOSTS:?the machines, this one first}"
node() {
  echo torchrun --nnodes="${#hosts[@]}" --node_rank="$1" --nproc_per_node="${PROCESSES:-8}" \
    --master_addr="${hosts[0]}" --master_port="${PORT:-29500}"
}
variables=(env "PATH=$PATH" "BRAID_SCRATCH=${BRAID_SCRATCH:-$PWD/scratch}")
running=()
for rank in "${!hosts[@]}"; do
  if ((rank)); then
    there=$(printf '%q ' "${variables[@]}" $(node "$rank") "$@")
    # With a terminal of its own, what runs there ends with the connection.
    ssh -ttn "${hosts[rank]}" "cd $(printf %q "$PWD") && $there" &
  else
    $(node 0) "$@" &
  fi
  running+=($!)
done
trap 'kill "${running[@]}" 2> /dev/null || true' EXIT
for _ in "${running[@]}"; do wait -n; done # the first machine to fail ends all

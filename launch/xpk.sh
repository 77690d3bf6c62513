#!/usr/bin/env bash
# Trains on slices of a GKE cluster, one or several: builds the image, sends the workload, follows.
#
#   bash launch/xpk.sh --name=mine --cluster=pods --zone=us-east5-a --type=v5p-128 --slices=2 \
#     --registry=us-docker.pkg.dev/my-project/images --workdir=/data/runs/one -- \
#     --config=configs/quickstart.py --config.mesh.slice=2
#
#   --name=NAME      of the workload
#   --cluster=NAME   made by `xpk cluster create`
#   --zone=ZONE      of the cluster
#   --type=TYPE      of each slice, such as v5p-128
#   --slices=N       how many; 1 if left out
#   --registry=PATH  where the image is pushed to
#   --workdir=PATH   in a volume that all pods share: `xpk storage attach --auto-mount=true` first
#   --project=ID     if it is not gcloud's own
#   --dry-run        prints every command, and runs none
#   -- FLAGS         of videoar_jax.main
#
# Needs docker, xpk and kubectl. Pods that fail or are pre-empted are started again, and the run goes
# on from its last checkpoint. Ctrl-C stops following, not training: the same command follows again.
# To train with other flags or other code, first: xpk workload delete --workload=NAME, or a new name.
# shellcheck disable=SC2154 # `read_options` sets the options.
set -euo pipefail

# shellcheck source=launch/commands.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/commands.sh"
read_options "name cluster zone type slices registry workdir project" "$@"
need_options name cluster zone type registry workdir
check_flags
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

name="$option_name" image="$option_registry/videoar_jax:$option_name"
place=(--cluster="$option_cluster" --zone="$option_zone")
[[ -z "${option_project:-}" ]] || place+=(--project="$option_project")
main="$(quote python -m videoar_jax.main --workdir="$option_workdir" --distributed "${flags[@]}")"
# xpk writes it into a block of YAML, which a second line would end.
[[ "$main" != *$'\n'* ]] || fail "a flag has a line break, which xpk cannot pass on"

create() {
  run docker build --file=launch/Dockerfile --build-arg=ACCELERATOR=tpu --tag="$image" .
  run docker push "$image"
  # Of its own, xpk restarts after the statuses 127 to 255: signals, and errors that nobody foresaw.
  # Those that the user has to mend, 1 and 2, end the workload. To save takes longer than 30 seconds.
  run xpk workload create --workload="$name" "${place[@]}" --tpu-type="$option_type" \
    --num-slices="${option_slices:-1}" --docker-image="$image" --max-restarts=100 \
    --termination-grace-period-seconds=600 --command="$main"
}

first="jobset.sigs.k8s.io/jobset-name=$name,jobset.sigs.k8s.io/job-index=0,\
batch.kubernetes.io/job-completion-index=0"

# Says whether there is anything yet that kubectl could follow; else it would end at once.
has_started() {
  local pods
  pods="$(kubectl get pods --selector="$first" --field-selector=status.phase!=Pending --output=name)"
  [[ -n "$pods" ]]
}

# This also makes kubectl speak to the cluster.
run xpk workload list "${place[@]}" --filter-by-job="$name"
if [[ -n "$is_dry_run" || -z "$(kubectl get jobsets "$name" --ignore-not-found --output=name)" ]]; then
  create
else
  echo "the workload $name is there already, as it was started; following it"
fi
until [[ -n "$is_dry_run" ]] || has_started; do
  echo "waiting for $name to start"
  sleep 30
done
run kubectl logs --follow --tail=-1 --all-containers --selector="$first"
run xpk workload list "${place[@]}" --filter-by-job="$name"

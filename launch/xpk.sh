#!/usr/bin/env bash
# Trains on slices of a GKE cluster: builds the image, submits the workload, follows the log.
#
#   bash launch/xpk.sh --name=mine --cluster=pods --zone=us-east5-a --type=v5p-128 --slices=2 \
#     --registry=us-docker.pkg.dev/my-project/images --workdir=/data/runs/one -- \
#     --config=configs/quickstart.py --config.mesh.slice=2
#
#   --name=NAME      of the workload
#   --cluster=NAME   made by `xpk cluster create`
#   --zone=ZONE      of the cluster
#   --type=TYPE      of each slice, such as v5p-128
#   --slices=N       number of slices; 1 by default
#   --registry=PATH  to push the image to
#   --workdir=PATH   in a volume that all pods share: `xpk storage attach --auto-mount=true` first
#   --project=ID     if it is not gcloud's default
#   --dry-run        print every command, and run none
#   -- FLAGS         of videoar_jax.main
#
# Needs docker, xpk and kubectl. Pods that fail or are pre-empted are restarted, and the run resumes
# from its last checkpoint. Ctrl-C stops following, not training: the same command follows again.
# To train with other flags or code: xpk workload delete --workload=NAME first, or another name.
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
# xpk writes it into a block of YAML, which a second line would break.
[[ "$main" != *$'\n'* ]] || fail "a flag has a line break, which xpk cannot pass on"

create() {
  run docker build --file=launch/Dockerfile --build-arg=ACCELERATOR=tpu --tag="$image" .
  run docker push "$image"
  # By default, xpk restarts after statuses 127 to 255: signals, hangs and lost processes. Errors, 1 and
  # 2, end the workload. Saving takes longer than the default grace period of 30 seconds.
  run xpk workload create --workload="$name" "${place[@]}" --tpu-type="$option_type" \
    --num-slices="${option_slices:-1}" --docker-image="$image" --max-restarts=100 \
    --termination-grace-period-seconds=600 --command="$main"
}

first="jobset.sigs.k8s.io/jobset-name=$name,jobset.sigs.k8s.io/job-index=0,\
batch.kubernetes.io/job-completion-index=0"

# Returns whether kubectl has anything to follow yet; otherwise it would end at once.
has_started() {
  local pods
  pods="$(kubectl get pods --selector="$first" --field-selector=status.phase!=Pending --output=name)"
  [[ -n "$pods" ]]
}

# This also points kubectl at the cluster.
run xpk workload list "${place[@]}" --filter-by-job="$name"
if [[ -n "$is_dry_run" || -z "$(kubectl get jobsets "$name" --ignore-not-found --output=name)" ]]; then
  create
else
  echo "the workload $name is there already, with the flags of its first start; following it"
fi
until [[ -n "$is_dry_run" ]] || has_started; do
  echo "waiting for $name to start"
  sleep 30
done
run kubectl logs --follow --tail=-1 --all-containers --selector="$first"
run xpk workload list "${place[@]}" --filter-by-job="$name"

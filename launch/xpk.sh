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
# on from its last checkpoint.
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

run docker build --file=launch/Dockerfile --build-arg=ACCELERATOR=tpu --tag="$image" .
run docker push "$image"
run xpk workload create --workload="$name" "${place[@]}" --tpu-type="$option_type" \
  --num-slices="${option_slices:-1}" --docker-image="$image" --max-restarts=100 --command="$main"
run kubectl logs --follow --all-containers --pod-running-timeout=1h --selector="\
jobset.sigs.k8s.io/jobset-name=$name,jobset.sigs.k8s.io/job-index=0,\
batch.kubernetes.io/job-completion-index=0"
run xpk workload list "${place[@]}" --filter-by-job="$name"

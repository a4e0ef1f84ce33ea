#!/usr/bin/env bash
# Writes the plain manifests of this folder from the chart. Usage: deploy/kubernetes/generate.sh [OUT_FOLDER]
# HELM names the helm to use.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$here}
helm=${HELM:-helm}

render() {  # NAME SENTENCE [FLAGS...]
  local name=$1 sentence=$2
  shift 2
  {
    echo "# $sentence"
    echo "# From deploy/helm/weir by deploy/kubernetes/generate.sh: kubectl create namespace weir, then"
    echo "# kubectl apply --namespace weir -f $name.yaml"
    "$helm" template weir "$here/../helm/weir" --namespace weir --kube-version 1.31.0 "$@" 2>/dev/null |
      grep -vE '^ *(helm.sh/chart|app.kubernetes.io/managed-by):|^# Source:'
  } >"$out/$name.yaml"
}

render cpu "One server on CPUs with the model that is in the image." --set networkPolicy.enabled=true
render gpu "Two servers with a GPU each, their model in the claim weir-models, and a gateway before them." \
  --set kind=StatefulSet,replicas=2,gpu.count=1,http.enabled=false,gateway.enabled=true \
  --set model.source=pvc,model.path=/models/model,model.pvc.claimName=weir-models \
  --set resources.requests.cpu=4,resources.requests.memory=16Gi,resources.limits.memory=32Gi \
  --set networkPolicy.enabled=true

#!/usr/bin/env bash
# kubectl as the administrator of the cluster.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
kubectl "$@"

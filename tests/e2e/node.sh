#!/usr/bin/env bash
# Runs a command on a machine of the cluster. usage: node.sh cp|nodeN COMMAND...
set -euo pipefail
. "$(dirname "$0")/lib.sh"
in_machine "${1:?usage: node.sh cp|nodeN COMMAND...}" "${@:2}"

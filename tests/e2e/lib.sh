# shellcheck shell=bash disable=SC2034
# What the scripts of this folder share; sourced. `cargo xtask e2e` sets E2E_HOME and built what is in $E2E_HOME/bin.

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
: "${E2E_HOME:?run this by cargo xtask e2e}"
BIN=$E2E_HOME/bin
IMAGES=$E2E_HOME/images
RUN=$E2E_HOME/run
LOG=$E2E_HOME/log
PKI=$E2E_HOME/pki

# All addresses are inside of network namespaces that up.sh makes: the control plane is .1, node N is .(10+N).
LAN=172.30.0
API_ADDR=$LAN.1
POD_NET=10.244
SERVICE_CIDR=10.96.0.0/16
API_SERVICE_IP=10.96.0.1
DNS_SERVICE_IP=10.96.0.10
LB_NET=172.30.1

# A machine is `cp` or `nodeN`. Its processes are in the cgroup ballast-e2e/MACHINE, which it sees as the root.
CGROUP=ballast-e2e

say() { printf '      %s %s\n' "$(date +%H:%M:%S)" "$*"; }
die() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}
netns() { echo "ballast-e2e-$1"; }
node_ip() { echo "$LAN.$((10 + $1))"; }
pod_cidr() { echo "$POD_NET.$1.0/24"; }

# wait_for SECONDS WHAT COMMAND...
wait_for() {
  local secs=$1 what=$2 end=$((SECONDS + $1))
  shift 2
  until ("$@") >/dev/null 2>&1; do
    [ "$SECONDS" -lt "$end" ] || die "gave up after $secs s waiting for $what; logs are in $LOG"
    sleep 0.5
  done
}

# hierarchies: where cgroups are mounted: one for version 2, one for each controller of version 1.
hierarchies() {
  local d
  if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
    echo /sys/fs/cgroup
    return
  fi
  for d in /sys/fs/cgroup/*; do
    if [ -e "$d/cgroup.procs" ]; then echo "$d"; fi
  done
}

make_cgroup() {
  local h p part
  for h in $(hierarchies); do
    p=$h
    for part in ${1//\// }; do
      mkdir -p "$p/$part"
      # A new cpuset of version 1 has no processors until it is given some.
      if [ -e "$p/$part/cpuset.cpus" ] && [ -e "$p/cpuset.mems" ] && [ -z "$(cat "$p/$part/cpuset.cpus")" ]; then
        cat "$p/cpuset.mems" >"$p/$part/cpuset.mems"
        cat "$p/cpuset.cpus" >"$p/$part/cpuset.cpus"
      fi
      p=$p/$part
    done
  done
}

join_cgroup() {
  local h
  for h in $(hierarchies); do echo "$BASHPID" >"$h/$1/cgroup.procs"; done
}

# machine_pid MACHINE: the process that holds its namespaces, if it lives.
machine_pid() {
  local pid
  pid=$(cat "$RUN/$1/pid" 2>/dev/null) || return 1
  [ -d "/proc/$pid" ] && grep -q "/$CGROUP/$1/" "/proc/$pid/cgroup" && echo "$pid"
}

# in_machine MACHINE COMMAND...: there, in the foreground.
in_machine() {
  local m=$1 pid
  shift
  pid=$(machine_pid "$m") || die "$m is not up"
  (
    join_cgroup "$CGROUP/$m/system"
    exec nsenter --target "$pid" --cgroup --mount --net --uts --ipc --pid -- "$@"
  )
}

# daemon MACHINE NAME COMMAND...: there, in the background.
daemon() {
  local m=$1 name=$2
  shift 2
  in_machine "$m" setsid "$@" </dev/null >>"$LOG/$m-$name.log" 2>&1 &
}

kubectl() { nsenter --net="/run/netns/$(netns cp)" "$BIN/kubectl" --kubeconfig "$PKI/admin.kubeconfig" "$@"; }

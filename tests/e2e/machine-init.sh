#!/usr/bin/env bash
# The first process of a machine, in new mount, process, network, host name and IPC namespaces: it mounts what a machine
# has of its own, then waits and reaps.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

machine=${1:?started by up.sh}
dir=$RUN/$machine
echo "$machine" >/proc/sys/kernel/hostname
# Until /proc is mounted anew it shows the number this process has outside.
read -r pid _ </proc/self/stat
mount -t proc proc /proc

cgroups=$(awk '$3 == "cgroup" || $3 == "cgroup2" { print $2, $3, $4 }' /proc/self/mounts)
mount -t sysfs sysfs /sys
if [ "$(awk '{ print $1; exit }' <<<"$cgroups")" != /sys/fs/cgroup ]; then
  mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup
fi
while read -r where type options; do
  mkdir -p "$where"
  [ "$type" = cgroup ] || options=
  # Of the options of version 1 those that name controllers matter.
  options=$(tr , '\n' <<<"$options" | grep -vxE 'rw|ro|relatime|nosuid|nodev|noexec|xattr|seclabel' | paste -sd,) || true
  mount -t "$type" ${options:+-o "$options"} "$type" "$where"
done <<<"$cgroups"
# With --least nobody else does; otherwise the agent mounts it.
if [ -f "$RUN/least" ]; then mount -t bpf bpf /sys/fs/bpf; fi

mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/lock /run/netns
while read -r d; do
  mkdir -p "$dir/root$d"
  mount --bind "$dir/root$d" "$d"
done <"$HERE/node-dirs.txt"
mount --bind "$BIN/cni" /opt/cni/bin
mount --make-rshared /
echo "$pid" >"$dir/pid"
# As process 1 it reaps what is left to it, whenever a child of its own ends.
trap 'exit 0' TERM
while :; do
  sleep 1 &
  wait $! || true
done

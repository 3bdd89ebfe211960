#!/usr/bin/env bash
# Ends the processes of the cluster and no others, and leaves nothing of it mounted. What was built stays, and so do logs.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

# All its processes, and no others, are in its cgroup.
pids() {
  local h
  for h in $(hierarchies); do
    if [ -d "$h/$CGROUP" ]; then find "$h/$CGROUP" -name cgroup.procs -exec cat {} +; fi
  done | sort -un
}

for ((i = 0; i < 50; i++)); do
  mapfile -t left < <(pids)
  [ "${#left[@]}" = 0 ] && break
  kill -KILL "${left[@]}" 2>/dev/null || true
  sleep 0.2
done
[ "${#left[@]}" = 0 ] || die "these processes do not end: ${left[*]}"
for h in $(hierarchies); do
  if [ -d "$h/$CGROUP" ]; then find "$h/$CGROUP" -depth -type d -exec rmdir {} +; fi
done
for f in /run/netns/ballast-e2e-*; do
  if [ -e "$f" ]; then ip netns delete "${f##*/}"; fi
done
if [ -f "$RUN/sysctl.saved" ]; then sysctl -q -p "$RUN/sysctl.saved" || true; fi
if [ -f "$RUN/made-dirs" ]; then
  tac "$RUN/made-dirs" | while read -r d; do rmdir "$d" 2>/dev/null || say "kept $d: not empty"; done
fi
if grep -q " $RUN/" /proc/self/mounts; then die "something is still mounted below $RUN"; fi
rm -rf "$RUN" "$PKI"

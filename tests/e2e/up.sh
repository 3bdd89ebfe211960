#!/usr/bin/env bash
# Brings up a cluster without kube-proxy: a control plane and nodes with kubelets, each a machine of its own as far as
# network, processes, mounts, cgroups and host name go, and Ballast as its DaemonSet.
# usage: up.sh NODES INSTALL.YAML PAUSE_IMAGE DNS.YAML DNS_DEPLOYMENT
set -euo pipefail
. "$(dirname "$0")/lib.sh"
nodes=${1:?} install=${2:?} pause=${3:?} dns=${4:?} dns_deployment=${5:?}
mkdir -p "$RUN" "$LOG"
rm -f "$LOG"/*.log
"$HERE/pki.sh" "$nodes"

# Kubelets set these for the whole machine; down.sh puts them back.
sysctls=(vm.overcommit_memory vm.panic_on_oom kernel.panic kernel.panic_on_oops
  kernel.keys.root_maxkeys kernel.keys.root_maxbytes)
[ -f "$RUN/sysctl.saved" ] || sysctl -e "${sysctls[@]}" >"$RUN/sysctl.saved"

# What a node covers with a folder of its own must exist; down.sh removes what was made for that.
while read -r d; do
  until [ -d "$d" ]; do
    missing=$d
    while [ ! -d "${missing%/*}" ] && [ -n "${missing%/*}" ]; do missing=${missing%/*}; done
    mkdir "$missing"
    echo "$missing" >>"$RUN/made-dirs"
  done
done <"$HERE/node-dirs.txt"

machine() {
  local m=$1 ns
  ns=$(netns "$m")
  mkdir -p "$RUN/$m"
  ip netns add "$ns"
  ip -n "$ns" link set lo up
  make_cgroup "$CGROUP/$m/system"
  # The root of a cgroup namespace is where the process is that makes it.
  # shellcheck disable=SC2016
  (
    join_cgroup "$CGROUP/$m"
    exec unshare --cgroup -- bash -c '. "$1/lib.sh"; join_cgroup "$CGROUP/$2/system"
      exec nsenter --net="/run/netns/$(netns "$2")" \
        unshare --fork --kill-child --pid --mount --uts --ipc -- "$1/machine-init.sh" "$2"' \
      machine "$HERE" "$m"
  ) </dev/null >"$LOG/$m-init.log" 2>&1 &
  wait_for 20 "$m to start" machine_pid "$m"
}

# network MACHINE ADDRESS: a cable to the bridge in the control plane.
network() {
  local ns cp
  ns=$(netns "$1") cp=$(netns cp)
  ip -n "$ns" link add eth0 type veth peer name "$1" netns "$cp"
  ip -n "$cp" link set "$1" master lan0 up
  ip -n "$ns" addr add "$2/24" dev eth0
  ip -n "$ns" link set eth0 up
  ip -n "$ns" route add default via "$API_ADDR"
  nsenter --net="/run/netns/$ns" sysctl -qw net.ipv4.ip_forward=1
}

control_plane() {
  local cp s
  cp=$(netns cp)
  machine cp
  ip -n "$cp" link add lan0 type bridge
  ip -n "$cp" addr add "$API_ADDR/24" dev lan0
  ip -n "$cp" link set lan0 up
  ip -n "$cp" route add unreachable default
  daemon cp etcd "$BIN/etcd" --data-dir "$RUN/cp/etcd" --unsafe-no-fsync --log-level warn \
    --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
    --listen-peer-urls http://127.0.0.1:2380
  daemon cp kube-apiserver "$BIN/kube-apiserver" \
    --etcd-servers http://127.0.0.1:2379 --advertise-address "$API_ADDR" --secure-port 6443 \
    --service-cluster-ip-range "$SERVICE_CIDR" --allow-privileged \
    --authorization-mode Node,RBAC --enable-admission-plugins NodeRestriction \
    --client-ca-file "$PKI/ca.crt" \
    --tls-cert-file "$PKI/apiserver.crt" --tls-private-key-file "$PKI/apiserver.key" \
    --kubelet-certificate-authority "$PKI/ca.crt" \
    --kubelet-client-certificate "$PKI/apiserver-kubelet-client.crt" \
    --kubelet-client-key "$PKI/apiserver-kubelet-client.key" \
    --kubelet-preferred-address-types InternalIP \
    --service-account-issuer https://kubernetes.default.svc.cluster.local \
    --service-account-key-file "$PKI/sa.pub" --service-account-signing-key-file "$PKI/sa.key" \
    --requestheader-client-ca-file "$PKI/front-proxy-ca.crt" \
    --requestheader-allowed-names front-proxy-client \
    --requestheader-username-headers X-Remote-User --requestheader-group-headers X-Remote-Group \
    --requestheader-extra-headers-prefix X-Remote-Extra- \
    --proxy-client-cert-file "$PKI/front-proxy-client.crt" \
    --proxy-client-key-file "$PKI/front-proxy-client.key" --enable-aggregator-routing
  wait_for 180 "the API server" kubectl get --raw /readyz
  s=$PKI/kube-controller-manager.kubeconfig
  daemon cp kube-controller-manager "$BIN/kube-controller-manager" \
    --kubeconfig "$s" --authentication-kubeconfig "$s" --authorization-kubeconfig "$s" \
    --leader-elect=false --use-service-account-credentials \
    --root-ca-file "$PKI/ca.crt" --service-account-private-key-file "$PKI/sa.key" \
    --cluster-signing-cert-file "$PKI/ca.crt" --cluster-signing-key-file "$PKI/ca.key" \
    --service-cluster-ip-range "$SERVICE_CIDR"
  s=$PKI/kube-scheduler.kubeconfig
  daemon cp kube-scheduler "$BIN/kube-scheduler" --kubeconfig "$s" --authentication-kubeconfig "$s" \
    --authorization-kubeconfig "$s" --leader-elect=false
}

node_files() {
  local n=$1 d=$RUN/node$1
  mkdir -p "$d/root/etc/cni/net.d"
  cat >"$d/containerd.toml" <<TOML
version = 3
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = "$pause"
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
      SystemdCgroup = false
TOML
  cat >"$d/root/etc/cni/net.d/10-pods.conflist" <<JSON
{
  "cniVersion": "1.0.0",
  "name": "pods",
  "plugins": [
    {
      "type": "ptp",
      "ipam": {
        "type": "host-local",
        "ranges": [[{"subnet": "$(pod_cidr "$n")"}]],
        "routes": [{"dst": "0.0.0.0/0"}]
      }
    },
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}
JSON
  echo "# no name servers outside of the cluster" >"$d/resolv.conf"
  cat >"$d/kubelet.yaml" <<YAML
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
cgroupDriver: cgroupfs
failCgroupV1: false
failSwapOn: false
oomScoreAdj: 0
clusterDNS: [$DNS_SERVICE_IP]
clusterDomain: cluster.local
resolvConf: $d/resolv.conf
tlsCertFile: $PKI/node$n.crt
tlsPrivateKeyFile: $PKI/node$n.key
authentication:
  anonymous: {enabled: false}
  webhook: {enabled: true}
  x509: {clientCAFile: $PKI/ca.crt}
authorization: {mode: Webhook}
evictionHard: {memory.available: 200Mi, nodefs.available: 2%, imagefs.available: 2%}
imageGCHighThresholdPercent: 100
YAML
}

node() {
  local n=$1 m=node$1 tar
  machine "$m"
  network "$m" "$(node_ip "$n")"
  node_files "$n"
  daemon "$m" containerd env PATH="$BIN:$PATH" "$BIN/containerd" --config "$RUN/$m/containerd.toml"
  wait_for 60 "containerd of $m" in_machine "$m" "$BIN/ctr" version
  for tar in "$IMAGES"/*.tar; do
    in_machine "$m" "$BIN/ctr" -n k8s.io images import --local - <"$tar" >>"$LOG/$m-images.log" 2>&1 ||
      die "$m cannot import $tar: see $LOG/$m-images.log"
  done
  daemon "$m" kubelet "$BIN/kubelet" --config "$RUN/$m/kubelet.yaml" \
    --kubeconfig "$PKI/$m.kubeconfig" --hostname-override "$m" --node-ip "$(node_ip "$n")"
}

# Every machine knows at which node each range of pods is.
routes() {
  local n m at
  for ((n = 1; n <= nodes; n++)); do
    for ((m = 0; m <= nodes; m++)); do
      [ "$m" = "$n" ] && continue
      at=node$m
      [ "$m" = 0 ] && at=cp
      ip -n "$(netns "$at")" route replace "$(pod_cidr "$n")" via "$(node_ip "$n")"
    done
  done
}

t0=$SECONDS
control_plane
say "control plane up in $((SECONDS - t0)) s"
for ((n = 1; n <= nodes; n++)); do node "$n"; done
routes
for ((n = 1; n <= nodes; n++)); do
  wait_for 120 "node$n to register" kubectl get node "node$n"
  kubectl patch node "node$n" >/dev/null \
    -p "{\"spec\":{\"podCIDR\":\"$(pod_cidr "$n")\",\"podCIDRs\":[\"$(pod_cidr "$n")\"]}}"
done
# Without a Service address that works there is one way to the API server: its own.
kubectl -n kube-system create configmap ballast-api >/dev/null \
  --from-literal=KUBERNETES_SERVICE_HOST="$API_ADDR" --from-literal=KUBERNETES_SERVICE_PORT=6443
kubectl apply -f "$install" >/dev/null
kubectl wait --for=condition=Ready node --all --timeout=180s >/dev/null
say "$nodes nodes ready after $((SECONDS - t0)) s"
kubectl -n kube-system rollout status daemonset/ballast --timeout=180s >/dev/null
say "Ballast ready after $((SECONDS - t0)) s"
daemon cp balancer python3 "$HERE/balancer.py" --kubeconfig "$PKI/admin.kubeconfig" --prefix "$LB_NET"
sed "s|@DNS@|$DNS_SERVICE_IP|" "$dns" | kubectl apply -f - >/dev/null
kubectl -n kube-system rollout status "deployment/$dns_deployment" --timeout=180s >/dev/null
say "cluster up after $((SECONDS - t0)) s"

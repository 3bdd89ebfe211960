#!/usr/bin/env bash
# The keys, certificates and kubeconfigs of a cluster, in $E2E_HOME/pki.
# usage: pki.sh NODES
set -euo pipefail
. "$(dirname "$0")/lib.sh"

nodes=${1:?usage: pki.sh NODES}
mkdir -p "$PKI"
chmod 700 "$PKI"
cd "$PKI"

key() { [ -f "$1.key" ] || openssl ecparam -name prime256v1 -genkey -noout -out "$1.key"; }

# authority NAME: a self-signed certificate authority.
authority() {
  [ -f "$1.crt" ] && return
  key "$1"
  openssl req -x509 -new -key "$1.key" -sha256 -days 3650 -subj "/CN=$1" \
    -addext basicConstraints=critical,CA:TRUE \
    -addext keyUsage=critical,keyCertSign,cRLSign,digitalSignature -out "$1.crt"
}

# leaf NAME CA SUBJECT [SAN]: a certificate for a client, a server or both.
leaf() {
  [ -f "$1.crt" ] && return
  key "$1"
  openssl req -new -key "$1.key" -subj "$3" -out "$1.csr"
  {
    echo "basicConstraints=critical,CA:FALSE"
    echo "keyUsage=critical,digitalSignature,keyEncipherment"
    echo "extendedKeyUsage=clientAuth,serverAuth"
    if [ -n "${4:-}" ]; then echo "subjectAltName=$4"; fi
  } >"$1.ext"
  openssl x509 -req -in "$1.csr" -CA "$2.crt" -CAkey "$2.key" -CAcreateserial \
    -sha256 -days 3650 -extfile "$1.ext" -out "$1.crt" 2>/dev/null
  rm -f "$1.csr" "$1.ext"
}

b64() { base64 -w0 <"$1"; }

# kubeconfig NAME: what a client holding NAME's certificate needs.
kubeconfig() {
  cat >"$1.kubeconfig" <<YAML
apiVersion: v1
kind: Config
current-context: ballast
contexts:
- name: ballast
  context: {cluster: ballast, user: $1}
clusters:
- name: ballast
  cluster:
    server: https://$API_ADDR:6443
    certificate-authority-data: $(b64 ca.crt)
users:
- name: $1
  user:
    client-certificate-data: $(b64 "$1.crt")
    client-key-data: $(b64 "$1.key")
YAML
  chmod 600 "$1.kubeconfig"
}

authority ca
authority front-proxy-ca
api_names=DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc
api_names+=,DNS:kubernetes.default.svc.cluster.local,DNS:localhost
api_names+=,IP:$API_SERVICE_IP,IP:$API_ADDR,IP:127.0.0.1
leaf apiserver ca /CN=kube-apiserver "$api_names"
leaf apiserver-kubelet-client ca /O=system:masters/CN=kube-apiserver-kubelet-client
leaf front-proxy-client front-proxy-ca /CN=front-proxy-client
leaf admin ca /O=system:masters/CN=admin
leaf kube-controller-manager ca /CN=system:kube-controller-manager
leaf kube-scheduler ca /CN=system:kube-scheduler
for who in admin kube-controller-manager kube-scheduler; do kubeconfig "$who"; done
for ((n = 1; n <= nodes; n++)); do
  leaf "node$n" ca "/O=system:nodes/CN=system:node:node$n" "DNS:node$n,IP:$(node_ip "$n")"
  kubeconfig "node$n"
done

key sa
[ -f sa.pub ] || openssl ec -in sa.key -pubout -out sa.pub 2>/dev/null

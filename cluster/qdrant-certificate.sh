#!/bin/sh
# Make a certificate authority and Qdrant's certificate by it, for clusters without cert-manager: ca.crt, tls.crt, tls.key.
#
#   cluster/qdrant-certificate.sh FOLDER [NODES] [NAMESPACE]        3 nodes in the namespace refbert; valid for 825 days
#
# Names: the service's, each node's (they speak TLS to each other too), and localhost for a port-forward. The authority's key is
# thrown away: to add nodes or renew, make both anew, replace the secret and restart Qdrant and who reads it.
set -eu
folder=${1:?give a folder for the files}
nodes=${2:-3}
namespace=${3:-refbert}
mkdir -p "$folder"
cd "$folder"
names="DNS:localhost,IP:127.0.0.1"
for host in qdrant qdrant-headless; do
    names="$names,DNS:$host,DNS:$host.$namespace.svc,DNS:$host.$namespace.svc.cluster.local"
done
node=0
while [ "$node" -lt "$nodes" ]; do
    names="$names,DNS:qdrant-$node.qdrant-headless,DNS:qdrant-$node.qdrant-headless.$namespace.svc.cluster.local"
    node=$((node + 1))
done
umask 077
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 825 -subj "/CN=refbert qdrant authority" \
    -addext "basicConstraints=critical,CA:TRUE" -addext "keyUsage=critical,keyCertSign" -keyout ca.key -out ca.crt 2> /dev/null
openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=qdrant" -keyout tls.key -out tls.csr 2> /dev/null
printf 'subjectAltName=%s\nextendedKeyUsage=serverAuth,clientAuth\nbasicConstraints=CA:FALSE\n' "$names" > extensions
openssl x509 -req -in tls.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 825 -extfile extensions -out tls.crt 2> /dev/null
rm -f ca.key ca.srl tls.csr extensions
openssl verify -CAfile ca.crt tls.crt

#!/bin/sh
# Make the secrets of docker/compose.yaml, those that are not there yet: 32 random bytes each, readable by their owner.
set -eu
folder="$(dirname "$0")/secrets"
mkdir -p "$folder"
for name in ray_token qdrant_api_key service_keys grafana_password; do
    test -s "$folder/$name" || od -An -N32 -tx1 /dev/urandom | tr -d ' \n' > "$folder/$name"
    # Containers read them as users of their own; the folder keeps this machine's other users out.
    chmod 644 "$folder/$name"
done
chmod 700 "$folder"

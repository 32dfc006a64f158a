#!/bin/sh
# Builds `kubelab` (see main.go) and prints the path of the binary.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
version=$(awk '$1 == "k8s.io/kubernetes" && $2 ~ /^v1/ { print $2 }' "$here/go.mod")
minor=$(echo "$version" | cut -d. -f2)
# A release gets its version from the linker; without it the server reports v0.0.0-master, and
# clients that look at the minor version take it for an ancient one.
server=k8s.io/component-base/version client=k8s.io/client-go/pkg/version
exec "$here/../go-build.sh" kubelab "$here" . "-X $server.gitVersion=$version \
-X $server.gitMajor=1 -X $server.gitMinor=$minor -X $client.gitVersion=$version"

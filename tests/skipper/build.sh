#!/bin/sh
# Builds the Skipper ingress controller and prints the path of the binary.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
exec "$here/../go-build.sh" skipper "$here" github.com/zalando/skipper/cmd/skipper

#!/bin/sh
# Builds one program out of a Go module of the tests and prints the path of the binary:
#
#   go-build.sh NAME MODULE_FOLDER PACKAGE [LDFLAGS]
#
# The binary is kept outside the clone, under a name made of the module's sources, the flags and
# the Go version, so a second call only looks it up. Progress goes to standard error.
set -eu
name=$1 module=$2 package=$3 ldflags=${4:-}
cd "$module"

command -v go >/dev/null || { echo "go-build: no Go here; see tests/setup.sh" >&2; exit 1; }
# What is built must not hang on the shell's settings, and those decide the key too.
export CGO_ENABLED=0 GOFLAGS='-mod=readonly -buildvcs=false'

cache=${BERTH_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/berth-tests}
key=$({ go version; echo "$package $ldflags"; cat go.mod go.sum; cat ./*.go 2>/dev/null || :; } |
    sha256sum | cut -c1-16)
binary=$cache/$name-$key
[ -x "$binary" ] && { echo "$binary"; exit; }

mkdir -p "$cache"
# Two callers at once: one builds, the other waits and finds the binary.
exec 9>"$cache/$name.lock"
flock 9
[ -x "$binary" ] && { echo "$binary"; exit; }

# -v names each package as it is compiled. The last lines are kept for the case that it fails.
progress() {
    awk -v name="$name" '
        /^go: downloading / { loaded++ }
        /^[a-z0-9.]+\/|^[a-z]+(\/[a-z0-9]+)*$/ { compiled++ }
        { tail[NR % 20] = $0 }
        systime() >= next_report {
            printf "%s: %d modules downloaded, %d packages compiled\n", name, loaded, compiled
            fflush(); next_report = systime() + 10
        }
        END { if (failed()) for (i = NR + 1; i <= NR + 20; i++) if (tail[i % 20]) print tail[i % 20] }
        function failed(  line) { return (getline line < status) <= 0 || line != "0" }
    ' status="$binary.status" >&2
}

started=$(date +%s)
echo "$name: building $package; minutes on an empty Go cache, seconds on a full one" >&2
{
    code=0
    go build -v -ldflags "-s -w $ldflags" -o "$binary.part" "$package" 2>&1 || code=$?
    echo "$code" >"$binary.status"
} | progress
code=$(cat "$binary.status")
rm -f "$binary.status"
[ "$code" = 0 ] || { echo "$name: go build failed ($code)" >&2; exit "$code"; }
mv "$binary.part" "$binary"
# Only the newest build is of use.
find "$cache" -name "$name-*" -type f ! -path "$binary" -mtime +7 -delete
echo "$name: built in $(($(date +%s) - started)) s" >&2
echo "$binary"

#!/bin/sh
# Rewrites go.mod and go.sum for another Kubernetes version: update-go-mod.sh v1.34.2
#
# k8s.io/kubernetes requires its own libraries (k8s.io/api and so on) as v0.0.0 and replaces them
# by folders of its source tree. Replacements of a dependency do not count, so they are repeated
# here, each with the published version that belongs to the release.
set -eu
kubernetes=${1:?which version of Kubernetes, for example v1.34.2}
libraries=v0.${kubernetes#v1.}
cd "$(dirname "$0")"

upstream=$(go mod download -json "k8s.io/kubernetes@$kubernetes" |
    python3 -c 'import json, sys; print(json.load(sys.stdin)["GoMod"])')

awk -v kubernetes="$kubernetes" -v libraries="$libraries" '
    $1 == "go" { go = $2 }
    $1 == "go.etcd.io/etcd/server/v3" { etcd = $2 }
    # The samples are not published with every patch release, and nothing here needs them.
    $2 == "=>" && $3 ~ /^\.\/staging/ && $1 !~ /\/sample-/ { library[++count] = $1 }
    END {
        print "module kubelab\n\ngo " go "\n\nrequire ("
        print "\tgo.etcd.io/etcd/server/v3 " etcd
        print "\tk8s.io/component-base " libraries
        print "\tk8s.io/kubectl " libraries
        print "\tk8s.io/kubernetes " kubernetes "\n)\n\nreplace ("
        for (i = 1; i <= count; i++) print "\t" library[i] " => " library[i] " " libraries
        print ")"
    }' "$upstream" >go.mod
rm -f go.sum
go mod tidy

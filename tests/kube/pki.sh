#!/bin/sh
# Keys and certificates for one short life of a control plane: pki.sh FOLDER ADDRESS...
# The API server is reached by the ADDRESSes.
set -eu
folder=$1
shift
mkdir -p "$folder"
cd "$folder"

key() { openssl ecparam -name prime256v1 -genkey -noout -out "$1"; }

key ca.key
openssl req -x509 -new -key ca.key -days 30 -subj /CN=berth-tests -out ca.crt \
    -addext keyUsage=critical,keyCertSign,cRLSign

names=DNS:kubernetes.default.svc
for address; do names=$names,IP:$address; done
cat >apiserver.ext <<EXTENSIONS
basicConstraints = CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectAltName = $names
EXTENSIONS
key apiserver.key
openssl req -new -key apiserver.key -subj /CN=kube-apiserver -out apiserver.csr
openssl x509 -req -in apiserver.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 30 \
    -extfile apiserver.ext -out apiserver.crt

# Signs the tokens of service accounts.
key sa.key
openssl ec -in sa.key -pubout -out sa.pub

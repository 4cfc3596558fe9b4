#!/bin/sh
# Makes the keys and envelopes of this folder with nothing of nixfleet: openssl signs the
# pre-authentication encoding that printf writes. The keys are for these tests alone.
set -eu
cd "$(dirname "$0")"
type=application/vnd.nixfleet.fleet.v1+json
payload='{"schemaVersion":1,"signedAt":"2026-11-23T08:00:00Z","commit":"0a1b2c3d","hosts":{},"channels":{},"rolloutPolicies":{}}'

openssl genpkey -algorithm ed25519 -out ed25519.key.pem
openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out p256.key.pem
printf 'DSSEv1 %d %s %d %s' "${#type}" "$type" "${#payload}" "$payload" >pae
for name in ed25519 p256; do
	openssl pkey -in $name.key.pem -pubout -out $name.pub.pem
	if [ $name = ed25519 ]; then
		openssl pkeyutl -sign -inkey $name.key.pem -rawin -in pae -out sig
	else
		openssl dgst -sha256 -sign $name.key.pem -out sig pae
	fi
	id=$(openssl pkey -pubin -in $name.pub.pem -outform DER | sha256sum | cut -d' ' -f1)
	printf '{"payloadType":"%s","payload":"%s","signatures":[{"keyid":"%s","sig":"%s"}]}' \
		"$type" "$(printf %s "$payload" | base64 -w0)" "$id" "$(base64 -w0 <sig)" >$name.dsse.json
done
rm pae sig

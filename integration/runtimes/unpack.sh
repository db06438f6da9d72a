#!/usr/bin/env bash
# Unpacks Debian's podman and Docker below a directory, without installing them: that would start Docker.
set -euo pipefail
mkdir -p "$1" && cd "$1"
[ -e usr/bin/podman ] && [ -e usr/sbin/dockerd ] && exit 0
apt-get update -qq
apt-get download -qq docker.io tini podman conmon libgpgme11 libsubid4
for package in *.deb; do
	dpkg -x "$package" .
	rm "$package"
done

#!/usr/bin/env bash
# Installs the Debian packages whose commands the demo and the tests run, where they are missing, and those that are named
# as COMMAND=PACKAGE.
set -euo pipefail

declare -A package=(
	[ip]=iproute2 [nft]=nftables [iptables]=iptables [ping]=iputils-ping
	[etcd]=etcd-server [etcdctl]=etcd-client [setpriv]=util-linux [ethtool]=ethtool [gcc]=gcc [socat]=socat
	[wg-quick]=wireguard-tools [systemd-nspawn]=systemd-container [lxc-start]=lxc [systemd-analyze]=systemd [man]=man-db [pgrep]=procps [rpm]=rpm [gpg]=gnupg
	[containerd]=containerd [runc]=runc [busybox]=busybox-static [clang-14]=clang-14 [llvm-strip-14]=llvm-14
	[bird]=bird2 [/usr/lib/frr/bgpd]=frr
)
for more in "$@"; do package[${more%%=*}]=${more#*=}; done
missing=()
for command in "${!package[@]}"; do
	command -v "$command" >/dev/null || missing+=("${package[$command]}")
done
[ -e /usr/include/bpf/bpf_helpers.h ] || missing+=(libbpf-dev)
[ ${#missing[@]} -eq 0 ] && exit 0
echo "installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# An etcd that starts by itself would take the port that people's own uses.
printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d.overlayd
chmod +x /usr/sbin/policy-rc.d.overlayd
if [ ! -e /usr/sbin/policy-rc.d ]; then
	mv /usr/sbin/policy-rc.d.overlayd /usr/sbin/policy-rc.d
	trap 'rm -f /usr/sbin/policy-rc.d' EXIT
else
	rm -f /usr/sbin/policy-rc.d.overlayd
fi
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null

#!/usr/bin/env bash
# Makes two hosts on this machine, lets their containers talk over vxlan and over host-gw, and removes everything.
# `make demo` installs what it needs and builds first. Hosts and containers are network namespaces; nothing outside
# of them is touched, so that two demos can run at once.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly bin=$PWD/bin id=overlayd-demo-$$ megabytes=100
work=$(mktemp -d)
daemons=()

say() { printf '%3ds  %s\n' "$SECONDS" "$*"; }
show() { sed 's/^/        /'; }
# now is the time in milliseconds.
now() { echo $((${EPOCHREALTIME/[.,]/} / 1000)); }

cleanup() {
	local status=$?
	trap - EXIT
	if [ "$status" -ne 0 ]; then
		say "failed; the daemons' last words:"
		tail -n 15 "$work"/*.log 2>/dev/null | show || true
	fi
	for pid in "${daemons[@]}"; do kill "$pid" 2>/dev/null || true; done
	wait
	for ns in host1 host2 c1 c2; do
		ip netns pids "$id-$ns" 2>/dev/null | xargs -r kill -9
		ip netns delete "$id-$ns" 2>/dev/null || true
	done
	rm -rf "$work"
	[ "$status" -ne 0 ] || say "everything is removed"
	exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

[ "$(id -u)" -eq 0 ] || { echo "needs root, to make network namespaces" >&2; exit 1; }
[ -x "$bin/overlayd" ] || { echo "bin/overlayd is not there: run make demo" >&2; exit 1; }

# inside NAMESPACE COMMAND… runs a command inside a namespace.
inside() { local ns=$1; shift; nsenter --net="/run/netns/$id-$ns" -- "$@"; }

namespace() {
	ip netns add "$id-$1"
	inside "$1" ip link set lo up
}

# daemon HOST FLAG… starts overlayd under a host name of its own.
daemon() {
	local host=$1; shift
	mkdir -p "$work/$host/run"
	# shellcheck disable=SC2016 # for the inner shell
	nsenter --net="/run/netns/$id-$host" unshare --uts sh -c 'echo "$0" >/proc/sys/kernel/hostname && exec "$@"' "$host" \
		"$bin/overlayd" --config /dev/null --iface eth0 --ip-masq --run-dir "$work/$host/run" \
		--state-dir "$work/$host/state" "$@" >"$work/$host.log" 2>&1 &
	daemons+=($!)
}

# until_true SECONDS WHAT COMMAND… polls.
until_true() {
	local deadline=$((SECONDS + $1)) what=$2; shift 2
	until "$@" >/dev/null 2>&1; do
		[ "$SECONDS" -lt "$deadline" ] || { say "gave up waiting: $what"; return 1; }
		sleep 0.1
	done
}

ctl() { inside host1 "$bin/overlayctl" --config /dev/null --etcd-endpoints http://172.30.0.1:2379 "$@"; }
attached_to_peer() { inside "$1" ip route show "$2" | grep -q " via $3"; }

# cni VERB HOST CONTAINER runs cnitool with a /var/lib that is the host's own.
cni() {
	# shellcheck disable=SC2016 # for the inner shell
	CNI_PATH=$bin/cni NETCONFPATH=$work/$2/net.d inside "$2" unshare --mount sh -c \
		'mount --bind "$0" /var/lib && exec "$@"' "$work/$2/varlib" "$bin/cnitool" "$1" overlay "/run/netns/$id-$3"
}

attach() {
	local host=$1 container=$2
	mkdir -p "$work/$host/net.d" "$work/$host/varlib/cni"
	cat >"$work/$host/net.d/10-overlay.conflist" <<-CONF
		{"cniVersion": "1.0.0", "name": "overlay", "plugins": [
			{"type": "overlay", "subnetFile": "$work/$host/run/subnet.env", "delegate": {"isDefaultGateway": true}}]}
	CONF
	namespace "$container"
	cni add "$host" "$container" >"$work/$container.json"
}

address() { inside "$1" ip -4 -o address show eth0 2>/dev/null | sed -E 's/.* inet ([0-9.]+).*/\1/'; }

ping_all() {
	local from=$1 to=$2 out
	out=$(inside "$from" ping -n -q -c 20 -i 0.05 -W 2 "$to" || true)
	say "ping $from -> $to: $(sed -nE 's/^(.*packet loss).*/\1/p' <<<"$out"), rtt $(sed -nE 's/^rtt .* = ([^ ]+ ms).*/\1/p' <<<"$out")"
	grep -q ' 0% packet loss' <<<"$out" || { say "packets were lost"; return 1; }
}

transfer() {
	local from=$1 to=$2 ip=$3 start took got
	inside "$to" socat -u "TCP-LISTEN:5001,bind=$ip,reuseaddr" - 2>/dev/null | wc -c >"$work/got" &
	local receiver=$!
	until_true 5 "the receiver listens" inside "$to" grep -qi ':1389 00000000:0000 0A' /proc/net/tcp
	start=$(now)
	head -c "${megabytes}MB" /dev/zero | inside "$from" socat -u - "TCP:$ip:5001"
	wait "$receiver"
	took=$(($(now) - start)) got=$(<"$work/got")
	say "$megabytes MB over TCP $from -> $to in $took ms, $((megabytes * 8000 / (took + 1))) Mbit/s"
	[ "$got" -eq $((megabytes * 1000000)) ] || { say "$got bytes arrived"; return 1; }
}

talk() {
	ping_all c1 "$ip2"
	ping_all c2 "$ip1"
	transfer c1 c2 "$ip2"
	say "routes of host1:"
	inside host1 ip route | show
}

say "making two hosts and a wire between them"
namespace host1
namespace host2
inside host1 ip link add eth0 type veth peer name eth0 netns "$id-host2"
inside host1 ip address add 172.30.0.1/24 dev eth0
inside host2 ip address add 172.30.0.2/24 dev eth0
inside host1 ip link set eth0 up
inside host2 ip link set eth0 up

say "starting overlayd on both; the first one runs etcd too"
daemon host1 --etcd-embedded --etcd-embedded-insecure --etcd-embedded-listen 172.30.0.1:2379 --network 10.5.0.0/16
daemon host2 --etcd-endpoints http://172.30.0.1:2379
for host in host1 host2; do
	until_true 30 "subnet.env on $host" test -s "$work/$host/run/subnet.env"
	# shellcheck disable=SC1090
	say "$host has $(. "$work/$host/run/subnet.env" && echo "$FLANNEL_SUBNET, MTU $FLANNEL_MTU")"
done
subnet2=$(. "$work/host2/run/subnet.env" && echo "${FLANNEL_SUBNET/.1\//.0/}")
until_true 10 "host1's route to host2" attached_to_peer host1 "$subnet2" 10.5.

say "attaching a container to each with the CNI plugin"
attach host1 c1
attach host2 c2
ip1=$(address c1) ip2=$(address c2)
say "c1 is $ip1, c2 is $ip2"

say "over vxlan:"
talk
say "leases:"
ctl leases list | show

say "over host-gw: one change of the network config, and both hosts follow"
ctl network set '{"Network": "10.5.0.0/16", "Backend": {"Type": "host-gw"}}' | show
until_true 20 "host1 follows" attached_to_peer host1 "$subnet2" 172.30.0.2
until_true 20 "host2 follows" inside host2 sh -c "ip route | grep -q '^10.5.*via 172.30.0.1'"
talk
say "leases:"
ctl leases list | show

say "detaching the containers, stopping both daemons"
cni del host1 c1
cni del host2 c2

#!/usr/bin/env bash
# Runs the tests that touch the kernel on the kernels that people have: those of ./backend/... and the main scenarios of
# ./integration. A line for each package, the output of tests that failed, a sum. Environment: KERNELS, versions by their
# beginning; PKGS; RUN and SKIP, patterns for names of tests; SUBSET=1, what `make test` has of it.
set -euo pipefail
cd "$(dirname "$0")/../.."
here=$PWD/integration/kernels
# Debian 11's, 12's and 13's. Those before 6.2 rename no link that is up, as Ubuntu 22.04's and RHEL 9's.
read -ra kernels <<<"${KERNELS:-5.10 6.1 6.12}"
read -ra packages <<<"${PKGS:-./backend/... ./integration}"

# Of ./integration: what moves packets or programs the kernel, and what only these kernels can do.
scenarios='^Test(ContainersReachEachOther|DirectRouting|VXLANAcrossRouter|HostGWBehindRouter|Masquerade|HostReachesRemoteContainer'
scenarios+='|ForwardPolicyDrop|MixedNetwork|Takeover|TakeoverAndBack|NetworkChangesLoseNothing|RestartLosesNothing|HealsDamage|Cleanup'
scenarios+='|NothingLeftOfPeers|UnderlayAddressChanges|FastPath|AttackGuard|StreamCountsExactly|UnderlayOfVLANAndBond|EtcdFarAway'
scenarios+='|NetworkChangesWhilePacketsOvertake|UnderlayLosesPackets|NetworkMovesToWireGuard|WireGuard\w+|OutsidePeer|IPIP|UDP|UDPIsTheDefault'
scenarios+='|TunnelsChangeNothingLost|AttackIPIP|AttackUDP|IPv4TunnelsAreRefused|Flanneld\w*)$'
# What fits six minutes, where kernels differ, and what the machine at hand has not: packets go through the second.
declare -A subset=(
	[5.10]='^Test(AnotherPort|RouteGoesToAnotherLink|Heal|WireGuard|FOU)$'
	[6.1]='^Test(AnotherPort|RouteTurns|HealLinkDown|WireGuard|IPIP|UnderlayOfVLANAndBond)$'
)
if [ -n "${SUBSET:-}" ]; then
	read -ra kernels <<<"${KERNELS:-5.10 6.1}"
	read -ra packages <<<"${PKGS:-./backend/kernel ./integration}"
fi
# By kernel, with the reason.
declare -A expected_skips=(
	[5.10]=' TestForeignProgram '
	[6.1]=' TestForeignProgram ' # tcx is of 6.6
)

integration/packages.sh qemu-system-x86_64=qemu-system-x86 cpio=cpio depmod=kmod xz=xz-utils
bin=$(mktemp -d)
trap 'rm -rf "$bin"' EXIT
chmod 755 "$bin" # the users of some tests run what is in it
module=$(go list -m)
export CGO_ENABLED=0
go build -o "$bin/test2json" cmd/test2json
go test -c -o "$bin/" "${packages[@]}" >/dev/null # that some have no tests
# What builds its own program is tested where that can be built.
go list -f '{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}} {{.Dir}}{{end}}' "${packages[@]}" | grep -v '/backend/userspace ' >"$bin/list"
if [ -e "$bin/integration.test" ]; then # by which it builds what it runs, without race detection, as if it were to measure
	(cd integration && OVERLAYD_BIN_DIR=$bin/programs "$bin/integration.test" -test.run '^$' -test.bench '^$' >/dev/null)
fi

# In the guest: one CPU's worth of tests at a time, but for their waiting.
cat >"$bin/all" <<GUEST
export OVERLAYD_BIN_DIR=$bin/programs
if grep -q 'QEMU TCG' /proc/cpuinfo; then export OVERLAYD_SLOW=5; fi # of ten, for much is waiting
# What commands and the kernel would load one after the other takes ten seconds here, after which overlayd ends nft.
modprobe -aq nf_tables nft_ct nft_masq nft_chain_nat nft_nat nft_fib_inet nft_counter nft_limit nft_reject_inet nft_numgen nft_compat \\
	xt_comment xt_conntrack xt_MASQUERADE xt_tcpudp iptable_nat iptable_filter ip6table_nat ip6table_filter nf_conntrack_netlink \\
	vxlan bridge veth 8021q bonding sch_ingress sch_netem cls_bpf wireguard
# A processor of a tenth of the speed gets ten times as much to wait for it.
sysctl -qw net.core.netdev_max_backlog=10000
while read -r package dir; do
	skip='${SKIP:-^\$}' parallel=2
	if [ "\$1" = 5.10 ]; then # which has not what the programs of the fast path call: 5.18 has
		[ "\$package" != $module/backend/fastpath ] || continue
		skip="\$skip|^TestFastPath"
	fi
	case \$package in
	*/integration) run='$scenarios' parallel=1 ;; # their packets alone take the processor
	*) run=. ;;
	esac
	[ -z "\$2" ] || run=\$2
	(cd "\$dir" && $bin/test2json -t -p "\$package" $bin/\$(basename "\$dir").test -test.v=test2json \\
		-test.parallel \$parallel -test.timeout 90m -test.run "\$run" -test.skip "\$skip" </dev/null) || failed=1
done <$bin/list
exit \${failed:-0}
GUEST

one() { # all tests on one kernel
	local kernel=$1 status=0 run=${RUN:-}
	if [ -n "${SUBSET:-}" ]; then run=${RUN:-${subset[$kernel]}}; fi
	echo "Linux $kernel"
	go tool -modfile=tools.mod gotestsum --format pkgname --format-hide-empty-pkg --raw-command -- \
		"$here/boot.sh" "$kernel" bash "$bin/all" "$kernel" "$run" 2>&1 | tee "$bin/output-$kernel" || status=1
	sed -n 's/^=== FAIL: /failed: /p' "$bin/output-$kernel"
	if sed -n 's/^=== SKIP: /skipped, and not expected to be: /p' "$bin/output-$kernel" |
		grep -Ev "${expected_skips[$kernel]:-^\$}"; then status=1; fi
	return "$status"
}

# As many at once as there are processors: a guest has one.
for kernel in "${kernels[@]}"; do
	while [ "$(jobs -pr | wc -l)" -ge "$(nproc)" ]; do sleep 1; done
	{ one "$kernel" || touch "$bin/failed"; } >"$bin/report-$kernel" 2>&1 &
done
wait
for kernel in "${kernels[@]}"; do cat "$bin/report-$kernel"; done
[ ! -e "$bin/failed" ]

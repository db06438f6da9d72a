package integration

// wires are the networks below that choices are tried on: what the script leaves of a veth's offloads.
var wires = []struct{ name, do string }{
	{"offloads", ":"},
	{"no tunnel offloads", noTunnelOffload + " gro on"},
}

// noTunnelOffload has the wire segment no tunnels' packets, as some cards cannot.
const noTunnelOffload = "ethtool -K " + wireLink + " tx-udp_tnl-segmentation off tx-udp_tnl-csum-segmentation off"

// choices are what could be set otherwise on a host: scripts that set it and that set it back.
var choices = []struct{ name, do, undo string }{
	{"nothing", ":", ":"},
	{"udpcsum off", udpChecksum("noudpcsum"), udpChecksum("udpcsum")},
	{"tx-checksum off", "ethtool -K overlay.1 tx-checksum-ip-generic off",
		"ethtool -K overlay.1 tx-checksum-ip-generic on tso on"},
	{"gro off", "ethtool -K overlay.1 gro off", "ethtool -K overlay.1 gro on"},
	{"rx-gro-list on", "ethtool -K overlay.1 rx-gro-list on", "ethtool -K overlay.1 rx-gro-list off"},
	{"rx-udp-gro-forwarding on", "ethtool -K overlay.1 rx-udp-gro-forwarding on",
		"ethtool -K overlay.1 rx-udp-gro-forwarding off"},
	{"gro on at the containers' links", onPorts("gro on"), onPorts("gro off")},
	{"bridge netfilter off", noBridgeNetfilter, bridgeNetfilter},
	{"no rules of iptables", noIPTables, ipTables},
	{"rules of iptables without comments",
		"iptables-save >$dir/iptables; sed 's/-m comment --comment overlayd//' $dir/iptables | iptables-restore",
		"iptables-restore <$dir/iptables"},
	{"no guard", noChains("input", "incoming", "outgoing"), table},
	{"no guard of the tunnel", noChains("input"), table},
	{"no guard of ports", "nft list table bridge overlayd >$dir/bridge; nft delete table bridge overlayd", "nft -f $dir/bridge"},
	{"no masquerading", noChains("postrouting"), table},
	{"no netfilter", noBridgeNetfilter + "\n" + noIPTables + "\n" + noChains("input", "incoming", "outgoing", "postrouting"),
		bridgeNetfilter + "\n" + ipTables + "\n" + table},
	{"no tracking of inner packets", notrack("ip saddr 10.5.0.0/16 ip daddr 10.5.0.0/16"), "nft delete table inet bench"},
	{"no tracking of outer packets", notrack("udp dport 8472"), "nft delete table inet bench"},
	{"no early demux", "sysctl -qw net.ipv4.ip_early_demux=0", "sysctl -qw net.ipv4.ip_early_demux=1"},
}

// What a packet meets of netfilter.
const (
	noBridgeNetfilter = "sysctl -qw net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0"
	bridgeNetfilter   = "sysctl -qw net.bridge.bridge-nf-call-iptables=1 net.bridge.bridge-nf-call-ip6tables=1"
	noIPTables        = "iptables-save >$dir/iptables; nft delete table ip filter"
	ipTables          = "iptables-restore <$dir/iptables"
	table             = "nft delete table inet overlayd; nft -f $dir/nft"
)

// noChains takes base chains out of overlayd's table.
func noChains(chains ...string) string {
	script := "nft list table inet overlayd >$dir/nft"
	for _, chain := range chains {
		script += "\nnft flush chain inet overlayd " + chain + "; nft delete chain inet overlayd " + chain
	}
	return script
}

// notrack keeps what matches from the tracking of connections.
func notrack(match string) string {
	return `nft -f - <<end
table inet bench {
	chain prerouting { type filter hook prerouting priority raw; ` + match + ` notrack; }
	chain output { type filter hook output priority raw; ` + match + ` notrack; }
}
end`
}

// onPorts sets features of the host's ends of its containers' links.
func onPorts(features string) string {
	return "for port in $(ip -br link show master cni0 | cut -d@ -f1); do ethtool -K $port " + features + "; done"
}

// udpChecksum makes the vxlan link anew: the kernel does not change this one in place.
func udpChecksum(option string) string {
	return `
		mac=$(ip -o link show overlay.1 | grep -o 'ether [^ ]*' | cut -d' ' -f2)
		local=$(ip -o -4 address show ` + wireLink + ` | awk '{print $4}' | cut -d/ -f1)
		address=$(ip -o -4 address show overlay.1 | awk '{print $4}')
		neighbour=$(ip neighbour show dev overlay.1 nud permanent | sed 's/PERMANENT//')
		fdb=$(bridge fdb show dev overlay.1)
		route=$(ip route show dev overlay.1 proto 111)
		ip link delete overlay.1
		ip link add overlay.1 address $mac mtu 1450 type vxlan id 1 local $local dev ` + wireLink + ` dstport 8472 nolearning ` + option + `
		ip address add $address dev overlay.1
		ip link set overlay.1 up
		ip neighbour add $neighbour dev overlay.1 nud permanent
		bridge fdb add $fdb dev overlay.1
		ip route add $route dev overlay.1 proto 111`
}

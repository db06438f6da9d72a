package kernel

import "strings"

// named is what begins the names of links of named networks, of at most 11 bytes, by the name of the unnamed network's. Vxlan links
// are named after their VNI, which is one network's.
var named = map[string]string{WireGuardName: "ovw-", WireGuardName6: "ovx-", IPIPName: "ovi-", UDPName: "ovu-"}

// Named is the name of a network's link, given that of the unnamed network's.
func Named(name, network string) string {
	if network == "" {
		return name
	}
	return named[name] + network
}

// isNamed says whether a link has one of these names, or is that of a named network.
func isNamed(name string, names ...string) bool {
	for _, n := range names {
		if name == n || strings.HasPrefix(name, named[n]) {
			return true
		}
	}
	return false
}

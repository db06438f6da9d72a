package ports

import "strings"

// Rules are the lines for nft that make the sets and the chains which go by them, in the tables overlayd of the families.
func Rules(family string) []string {
	text := bridgeRules
	if family == "inet" {
		text = inetRules
	}
	var lines []string
	for line := range strings.Lines(strings.TrimSpace(text)) {
		verb, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		lines = append(lines, "add "+verb+" "+family+" overlayd "+rest)
	}
	return lines
}

// bridgeRules guard ports of bridges, before the bridge learns a MAC from what comes in. Whatever is in no set is dropped, and so
// are all frames but those of IP and ARP, those with a VLAN tag among them. An element is of a port, a MAC and an address.
//
// ND tells no lies by a source that is a container's own, but by its target (of an advertisement: whose MAC this is; of a
// solicitation from ::, which looks for others with the address: who must give it up). nft 1.0 has no name for that field, and
// compares it with a set of its own kind only. The first two rules are what nearly all packets meet, and halve what the guard
// costs them: all that must not be let pass by its source alone is left to the others (DHCP by both ports in one number). Reports of multicast groups from ::, which are sent again with an address, are
// dropped without a word.
const bridgeRules = `
set ports { type iface_index; }
set own4 { type iface_index . ether_addr . ipv4_addr; }
set own6 { type iface_index . ether_addr . ipv6_addr; }
set target6 { typeof iif . ether saddr . @th,64,128; }
set allowed4 { type iface_index . ether_addr . ipv4_addr; flags interval; }
set allowed6 { type iface_index . ether_addr . ipv6_addr; flags interval; }
counter container-ethertype
counter container-ipv4
counter container-ipv6
counter container-arp
counter container-nd
counter container-dhcp
chain container-arp
chain container-nd
chain container-advert
chain container-dad
chain container-ipv4
chain container-ipv6
chain container
chain containers { type filter hook prerouting priority -300; }
rule containers ether type ip @th,0,32 != 0x00430044 iif . ether saddr . ip saddr @own4 accept
rule containers ether type ip6 meta l4proto != ipv6-icmp @th,0,32 != 0x02230222 iif . ether saddr . ip6 saddr @own6 accept
rule containers iifname "` + Prefix + `*" goto container
rule containers iif @ports goto container
rule container ether type vmap { ip : goto container-ipv4, ip6 : goto container-ipv6, arp : goto container-arp }
rule container counter name container-ethertype drop
rule container-ipv4 udp sport 67 udp dport 68 counter name container-dhcp drop
rule container-ipv4 iif . ether saddr . ip saddr @own4 accept
rule container-ipv4 iif . ether saddr . ip saddr @allowed4 accept
rule container-ipv4 counter name container-ipv4 drop
rule container-arp arp htype 1 arp ptype ip arp hlen 6 arp plen 4 iif . ether saddr . arp saddr ip @own4 iif . arp saddr ether . arp saddr ip @own4 accept
rule container-arp arp htype 1 arp ptype ip arp hlen 6 arp plen 4 arp operation request arp saddr ip 0.0.0.0 iif . ether saddr . arp daddr ip @own4 iif . arp saddr ether . arp daddr ip @own4 accept
rule container-arp counter name container-arp drop
rule container-ipv6 icmpv6 type vmap { nd-router-advert : goto container-nd, nd-redirect : goto container-nd, nd-neighbor-advert : jump container-advert, nd-neighbor-solicit : jump container-dad }
rule container-ipv6 udp sport 547 udp dport 546 counter name container-dhcp drop
rule container-ipv6 iif . ether saddr . ip6 saddr @own6 accept
rule container-ipv6 iif . ether saddr . ip6 saddr @allowed6 accept
rule container-ipv6 ip6 saddr :: icmpv6 type { mld-listener-report, mld2-listener-report, mld-listener-done } drop
rule container-ipv6 counter name container-ipv6 drop
rule container-advert iif . ether saddr . @th,64,128 @target6 return
rule container-advert goto container-nd
rule container-dad ip6 saddr :: iif . ether saddr . @th,64,128 @target6 accept
rule container-nd counter name container-nd drop
`

// inetRules guard links that routes lead to: what comes in by one has an address to which it would be answered there.
const inetRules = `
set routed { type iface_index; }
counter container-routed
chain containers { type filter hook prerouting priority -300; }
rule containers iif @routed fib saddr . iif oif missing counter name container-routed drop
`

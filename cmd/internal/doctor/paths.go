package doctor

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/overlayd/overlayd/cmd/internal/api"
	"github.com/overlayd/overlayd/cmd/internal/probe"
)

// quickly is how peers are asked: twice more than once, because the first packet may have to find its neighbour.
var quickly = probe.Config{Count: 3, Interval: 100 * time.Millisecond, Timeout: time.Second}

// wayTo is a way to a peer, and whether it answers.
type wayTo struct {
	probe.Way
	peer              api.Peer
	overlay, underlay bool
}

// ask probes all peers by the overlay and by the underlay.
func ask(ctx context.Context, all []api.Peer) ([]wayTo, error) {
	var ways []wayTo
	var targets []probe.Target
	for _, p := range all {
		if p.Outside { // which comes and goes, and has no daemon to mend
			continue
		}
		for _, w := range probe.Ways(p) {
			if w.Overlay.IsValid() {
				ways = append(ways, wayTo{Way: w, peer: p})
				targets = append(targets, probe.Target{Addr: w.Overlay})
			}
		}
	}
	for _, w := range ways {
		if w.Underlay.IsValid() {
			targets = append(targets, probe.Target{Addr: w.Underlay})
		}
	}
	results, err := probe.Ping(ctx, targets, quickly)
	if err != nil {
		return nil, err
	}
	answers := map[netip.Addr]bool{}
	for _, r := range results {
		answers[r.Addr] = answers[r.Addr] || r.Received > 0
	}
	for i := range ways {
		ways[i].overlay, ways[i].underlay = answers[ways[i].Overlay], answers[ways[i].Underlay]
	}
	return ways, nil
}

// peers asks whether all peers answer and, where one does not, at which end of vxlan it hangs.
func peers(ctx context.Context, h *Host) Finding {
	if h.Status == nil {
		return noDaemon()
	}
	ways, err := ask(ctx, h.Status.Peers)
	if err != nil {
		return unknown(err)
	}
	var blocked, silent, unreached []string
	for _, p := range h.Status.Peers {
		if p.Path == "" && !probe.Reserved(p) {
			unreached = append(unreached, fmt.Sprintf("%s: %s", peerName(p), p.Error))
		}
	}
	for _, w := range ways {
		name := fmt.Sprintf("%s (%s)", peerName(w.peer), w.Underlay)
		switch {
		case w.overlay:
		case w.underlay && w.Tunnelled():
			blocked = append(blocked, name)
		default:
			silent = append(silent, name)
		}
	}
	switch {
	case len(blocked) > 0 && h.Network.Backend.Type == "vxlan":
		return fail("hosts answer, but not through vxlan: "+list(blocked),
			"let UDP 8472 (or the Backend's Port) through in both directions, on every firewall between the hosts; does overlayd run there, with the same VNI?")
	case len(blocked) > 0 && h.Status.WireGuard != nil:
		return fail("hosts answer, but not through wireguard: "+list(blocked),
			"let UDP "+ports(h.Status.WireGuard)+" through in both directions, on every firewall between the hosts; overlayctl wireguard tells when each last shook hands")
	case len(blocked) > 0 && h.Network.Backend.Type == "ipip":
		return fail("hosts answer, but not through ipip: "+list(blocked),
			"let protocol 4 (IPIP) through in both directions, on every firewall between the hosts; NAT, and many clouds, do not: vxlan needs UDP alone")
	case len(blocked) > 0 && h.Network.Backend.Type == "udp":
		return fail("hosts answer, but not through udp: "+list(blocked),
			"let UDP 8285 (or the Backend's Port) through in both directions, on every firewall between the hosts")
	case len(blocked) > 0:
		return fail("hosts answer, but not through the overlay: "+list(blocked), "overlayctl status there")
	case len(silent) > 0:
		return fail("no answer from "+list(silent), "are these hosts up? One whose firewall drops ICMP echoes looks so too; one that is gone for good: overlayctl leases release")
	case len(unreached) > 0:
		return fail("peers that this host cannot use: "+list(unreached), "the lease of each says another backend, or makes no sense: overlayctl leases get HOST")
	case len(ways) == 0:
		return skip("there are none")
	}
	return ok("%d, all answer", len(ways))
}

// overheads are what a way adds to a packet, in bytes, over IPv4: vxlan (RFC 7348, section 5), wireguard (its paper, 5.4.6), IP in
// IP, and that in UDP.
var overheads = map[string]int{"vxlan": 50, "wireguard": 60, "ipip": 20, "udp": 28}

// overhead is what a way adds over an underlay.
func overhead(path string, underlay netip.Addr) int {
	n := overheads[path]
	if n > 0 && underlay.Is6() {
		n += 20
	}
	return n
}

// pathMTU sends packets as large as containers' may become, in one piece, to each peer's host.
func pathMTU(ctx context.Context, h *Host) Finding {
	if h.Status == nil || h.Status.MTU == 0 {
		return noDaemon()
	}
	bySize := map[int][]netip.Addr{}
	names := map[netip.Addr]string{}
	for _, p := range h.Status.Peers {
		for _, w := range probe.Ways(p) {
			if !w.Underlay.IsValid() || p.Path == "" {
				continue
			}
			size := h.Status.MTU + overhead(p.Path, w.Underlay)
			bySize[size] = append(bySize[size], w.Underlay)
			names[w.Underlay] = peerName(p)
		}
	}
	var narrow []string
	least, silent := 0, 0
	for size, addrs := range bySize {
		found, err := probe.PathMTU(ctx, addrs, size)
		if err != nil {
			return unknown(err)
		}
		for _, addr := range addrs {
			switch passes := found[addr]; {
			case passes == 0:
				silent++
			case passes < size:
				narrow = append(narrow, fmt.Sprintf("%d of %d bytes to %s (%s)", passes, size, names[addr], addr))
				if least == 0 || passes < least {
					least = passes
				}
			}
		}
	}
	switch {
	case len(narrow) > 0:
		slices.Sort(narrow)
		return fail("the way is too narrow: "+list(narrow), fmt.Sprintf(
			"mend the way; or ip link set %s mtu %d; or, with a tunnel, \"MTU\": %[2]d in the network's Backend", h.Status.Underlay, least))
	case len(names) == 0 || silent == len(names):
		return skip("no host answers")
	}
	return ok("%d bytes pass to every host that answers", h.Status.MTU)
}

// checksums sends UDP to a closed port of each tunnelled peer. Its kernel says that nobody listens, unless it found
// the checksum wrong and dropped the packet without a word: the network card of one end does it wrong inside vxlan.
// Echoes pass all the same, since software computes their checksum. A firewall that drops UDP, but not on the
// underlay, looks alike; thus it is a warning.
func checksums(ctx context.Context, h *Host) Finding {
	if h.Status == nil {
		return noDaemon()
	}
	ways, err := ask(ctx, h.Status.Peers)
	if err != nil {
		return unknown(err)
	}
	var asked []string
	var targets []probe.Target
	for _, w := range ways {
		if w.overlay && w.underlay && w.peer.Path == "vxlan" {
			asked = append(asked, peerName(w.peer))
			targets = append(targets, probe.Target{Addr: w.Underlay, UDP: true}, probe.Target{Addr: w.Overlay, UDP: true})
		}
	}
	results, err := probe.Ping(ctx, targets, quickly)
	var odd []string // those that hear UDP on the underlay only
	for i := range results {
		if i%2 == 1 && results[i-1].Received > 0 && results[i].Received == 0 {
			odd = append(odd, asked[i/2])
		}
	}
	switch {
	case err != nil:
		return unknown(err)
	case len(asked) == 0:
		return skip("no host answers through vxlan")
	case len(odd) > 0:
		return warn("echoes pass through vxlan, UDP does not: "+list(odd),
			"try, on both hosts, ethtool -K "+h.Status.Underlay+" tx-udp_tnl-segmentation off tx-udp_tnl-csum-segmentation off, and ethtool -K overlay.1 tx off")
	}
	return ok("UDP passes through vxlan")
}

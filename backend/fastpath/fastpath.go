// Package fastpath carries packets between containers of different hosts past the bridge, the routes and netfilter: programs
// in the kernel wrap them as its own vxlan would, and unwrap what arrives from peers. Whatever they do not know, or may not
// decide, goes the slow way, which stays complete beneath.
package fastpath

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/vishvananda/netns"

	"github.com/overlayd/overlayd/backend/kernel"
)

// Peer is where packets for a subnet of containers go, and what packets from there come from.
type Peer struct {
	Subnet       netip.Prefix
	Host, Source netip.Addr // on the underlay; Source zero: as Host
	MAC          kernel.MAC // of its vxlan link; zero: it is reached without a tunnel
	VNI          uint32
	Port         uint16 // UDP, where it listens
	Near         bool   // on the underlay's link, with no gateway between
	ZeroChecksum bool   // its kernel takes UDP over IPv6 without a checksum
}

// Claim says what an owner, such as a lease's key, has; nil Peers: nothing any more.
type Claim struct {
	Owner string
	Peers []Peer
}

// Own is the host's own end.
type Own struct {
	Underlay int      // index of the link; 0: there is none, and then nothing is fast
	MTU      int      // of containers, bytes
	Tunnels  []Tunnel // at most one of each family of the underlay; none for host-gw
}

// Tunnel is what the host receives vxlan packets by.
type Tunnel struct {
	Addr netip.Addr // on the underlay
	Port uint16     // UDP
	VNI  uint32
	MAC  kernel.MAC
	Link string // its name
}

// Container is one of this host's, as its attachment record says.
type Container struct {
	Index        int // of the link on the host's side
	MAC, Gateway kernel.MAC
	Addrs        []netip.Addr
}

// Config is what a Path is made of.
type Config struct {
	Namespace  netns.NsHandle
	Log        *slog.Logger
	Registerer prometheus.Registerer // nil: no metrics
	Pinned     string                // directory in which Load left programs and maps; empty: New loads by itself
}

// Status is what the fast path does.
type Status struct {
	Off        string // why nothing is fast; empty: it is
	Peers      int
	Containers int
	Slow       []SlowContainer              // those that take the slow way
	Packets    map[string]uint64            // by the way they took: "sent" and "received" are fast, all others say why they were slow
	ByPeer     map[netip.Prefix]PeerPackets // fast ones, by the peer's subnet
}

// SlowContainer is a container whose packets are not fast.
type SlowContainer struct {
	Index int
	Addr  netip.Addr
	Why   string
}

// PeerPackets counts the fast packets to and from a peer; one that the card is to cut counts once.
type PeerPackets struct{ Sent, Received uint64 }

// Path is the fast path of one network namespace. All methods but Run may be called at any time.
type Path struct{}

// New loads the programs, or takes those that are pinned. The error says what the kernel or rights lack.
func New(Config) (*Path, error) { return nil, errors.New("the fast path is not there yet") }

// Run attaches the programs, and again where others detach them, until ctx ends; then traffic goes the slow way.
func (p *Path) Run(ctx context.Context) error { <-ctx.Done(); return nil }

// SetOwn says what the host's own end is. Before the first call nothing is fast.
func (p *Path) SetOwn(Own) {}

// Replace says what all owners have; others have nothing. What is gone is gone when it returns.
func (p *Path) Replace(all []Claim) {}

// Update is Replace for some owners.
func (p *Path) Update(changed []Claim) {}

// SetContainers says which containers there are, all of them.
func (p *Path) SetContainers([]Container) {}

// SetSlow has judge say which addresses of containers must go the slow way. It is asked for every one that comes.
func (p *Path) SetSlow(judge func(netip.Addr) bool) {}

// Slow says that addresses of containers must go the slow way, or need not any more. It holds when it returns.
func (p *Path) Slow(addrs []netip.Addr, slow bool) {}

// Use says why nothing may be fast (empty: it may), whether anything on this host tracks connections, and which links of
// containers must not be fast, with the reasons.
func (p *Path) Use(off string, tracked bool, links map[int]string) {}

// Status tells what the fast path does.
func (p *Path) Status() Status { return Status{} }

// Changed receives after what Status tells changed, but for its counts of packets.
func (p *Path) Changed() <-chan struct{} { return nil }

// Load loads the programs and pins them below dir, for a daemon that has fewer rights. What was pinned there goes.
func Load(dir string) error { return errors.New("the fast path is not there yet") }

// Remove removes what Load pinned below dir. That nothing is there is no error.
func Remove(dir string) error { return nil }

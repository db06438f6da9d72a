// Package fastpath carries packets between containers of different hosts past the bridge, the routes and netfilter: programs
// in the kernel wrap them as its own vxlan would, and unwrap what arrives from peers. Whatever they do not know, or may not
// decide, goes the slow way, which stays complete beneath.
package fastpath

import (
	"fmt"
	"log/slog"
	"net/netip"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/kernel"
	"github.com/overlayd/overlayd/backend/rtnl"
)

//go:generate go tool -modfile=../../tools.mod bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -no-global-types -type own -type peer -type prefix -type local -type traffic program fastpath.c -- -O2 -g -Wall -Werror -mcpu=v3 -idirafter /usr/include/x86_64-linux-gnu -idirafter /usr/include/aarch64-linux-gnu

// Peer is where packets for a subnet of containers go, and what packets from there come from. One that cannot be fast must be
// said, too (its Subnet will do): or what is for it would go to a peer with a wider subnet.
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
	Underlay int            // index of the link; 0: there is none, and then nothing is fast
	MTU      int            // of containers, bytes
	Tunnels  []Tunnel       // at most one of each family of the underlay; none for host-gw
	Subnets  []netip.Prefix // of its own containers: no peer's, not even inside a peer's wider one
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
	Bridge       int // index of the one that it is a port of; 0: of none
	MAC, Gateway kernel.MAC
	Addrs        []netip.Addr
}

// Config is what a Path is made of.
type Config struct {
	Namespace  netns.NsHandle
	Log        *slog.Logger
	Registerer prometheus.Registerer // nil: no metrics
	Pinned     string                // directory in which Load left programs and maps; empty: New loads by itself

	noTCX bool // for tests: attach as on kernels before 6.6
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
type Path struct {
	cfg     Config
	kernel  objects
	netlink *netlink.Handle
	hz      uint32
	changed chan struct{}
	wake    chan struct{} // links may have to be attached

	mu         sync.Mutex
	err        error // what did not get to the kernel and must be there: nothing is fast any more
	own        Own
	changing   bool   // own, and not all peers are told yet
	off        string // as Use says
	tracked    bool
	written    programOwn // as the kernel has it
	until      uint64     // own.until of the programs
	overlay    uint32     // index of the vxlan link over IPv6
	sysctls    [3]uint32  // what lookAtKernel found of conntrack
	peers      map[netip.Prefix]*peer
	owners     map[string][]netip.Prefix
	lastID     uint32
	lost       map[netip.Prefix]error // subnets that the kernel's map does not have as they are
	direct     int                    // peers that are reached without a tunnel
	containers []Container
	links      map[int]string // of containers, that may not be fast, and why
	gone       map[int]bool   // links of containers that are, or were meanwhile
	judge      func(netip.Addr) bool
	judged     map[netip.Addr]bool // what judge said, or Slow since
	said       int                 // how often any of these changed
	locals     map[netip.Addr]programLocal
	slow       []SlowContainer // what Status told last of these, as of told and toldOff
	told       int             // containers
	toldOff    string
	untold     map[netip.Addr]error // what the kernel did not take of them
	attachedTo int                  // links
	failed     map[int]error        // links that are not attached to, and why
}

// New loads the programs, or takes those that are pinned. The error says what the kernel or rights lack; that of a program
// has an ebpf.VerifierError.
func New(cfg Config) (*Path, error) {
	p := &Path{
		cfg: cfg, hz: jiffies(), changed: make(chan struct{}, 1), wake: make(chan struct{}, 1), off: "it is not known yet whether it may",
		peers: map[netip.Prefix]*peer{}, owners: map[string][]netip.Prefix{}, locals: map[netip.Addr]programLocal{},
		lost: map[netip.Prefix]error{}, gone: map[int]bool{},
	}
	var err error
	if p.netlink, err = netlink.NewHandleAt(rtnl.OrCurrent(cfg.Namespace), unix.NETLINK_ROUTE); err != nil {
		return nil, fmt.Errorf("fast path: netlink: %w", err)
	}
	if cfg.Pinned != "" {
		err = p.kernel.open(cfg.Pinned)
	} else {
		err = p.kernel.load()
	}
	if err == nil && cfg.Registerer != nil {
		err = cfg.Registerer.Register(collector{p})
	}
	if err != nil {
		return nil, fmt.Errorf("fast path: %w", err)
	}
	return p, nil
}

// Changed receives after what Status tells changed, but for its counts of packets.
func (p *Path) Changed() <-chan struct{} { return p.changed }

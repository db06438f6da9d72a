// Package backend plans, purely, how packets reach each peer: a lease goes in, kernel objects come out. Each kind
// of backend is one file and one line in the table.
package backend

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/overlayd/overlayd/backend/kernel"
	"github.com/overlayd/overlayd/subnet"
)

// Host is what a planner has to know of the host that it plans for.
type Host struct {
	Network   string                       // the network's name; empty: it has none
	Link      string                       // the underlay: the link that carries packets between hosts
	Unbound   bool                         // Link is loopback: packets go out by any link, as the routes say
	MTU       int                          // of Link, bytes; if Unbound, of the narrowest that packets go out by
	Addrs     map[subnet.Family]netip.Addr // the host's own addresses on Link
	PublicIPs map[subnet.Family]netip.Addr // where peers reach the host; differs from Addrs behind NAT
	VTEP      kernel.MAC                   // of the vxlan links that the host makes
	WireGuard kernel.Secret                // the key of its wireguard links; zero: it has none
	Ranges    []netip.Prefix               // of the network
	Finished  bool                         // udp: some peers take no packets with inner checksums that are not finished
	Told      json.RawMessage              // what PreStartupCommand has peers know of the host, a JSON string; nil: nothing
	Handover
}

// Handover is what a backend finds, and takes over or leaves alone.
type Handover struct {
	Present []kernel.Existing // the links that are there, whoever made them: flanneld, say
	Former  []kernel.Object   // the links that the host receives by, or received by under earlier configs, the latest first
	// Lacks says why the kernel does not have a feature; nil: it has. It looks, and loads a module, when it is asked. nil: it has all.
	Lacks func(kernel.Feature) error
}

// Backend plans for one kind of data path. It does no I/O and keeps nothing.
type Backend interface {
	// MTU is the largest packet in bytes that a container may send.
	MTU() int
	// Data is what the host's own lease tells peers for family f, compact JSON; nil if there is nothing to tell.
	Data(f subnet.Family) json.RawMessage
	// Local are the objects that receive packets for the host's own subnet.
	Local(own subnet.Endpoint) []kernel.Object
	// Peer are the objects that send packets to a peer's subnet, and the path they take for people to read; near
	// says that the peer's host is on the underlay's link, with no gateway between. It fails if the peer's lease makes no sense.
	Peer(own, peer subnet.Endpoint, near bool) (path string, objs []kernel.Object, err error)
	// WantsNear says whether Peer looks at near, so that nobody finds it out in vain.
	WantsNear() bool
}

// OwnError says that a peer's lease names what the kernel knows this host by: the MAC of its own link, or its wireguard key.
type OwnError struct {
	MAC kernel.MAC
	Key kernel.WGKey // zero: it is the MAC
}

func (e OwnError) Error() string {
	if e.Key != (kernel.WGKey{}) {
		return fmt.Sprintf("PublicKey %s is this host's own", e.Key)
	}
	return fmt.Sprintf("VtepMAC %s is this host's own", e.MAC)
}

// kind parses the options of one kind of backend, and says which keys of them it does not know.
type kind func(options json.RawMessage) (binder, []string, error)

// binder makes the backend once the host is known.
type binder interface {
	bind(Host) (Backend, error)
}

// kinds are the backends by the name that flannel gave them.
var kinds = map[string]kind{
	"vxlan":     func(o json.RawMessage) (binder, []string, error) { return parseVXLAN(o) },
	"host-gw":   func(o json.RawMessage) (binder, []string, error) { return parseHostGW(o) },
	"ipip":      func(o json.RawMessage) (binder, []string, error) { return parseIPIP(o) },
	"udp":       func(o json.RawMessage) (binder, []string, error) { return parseUDP(o) },
	"alloc":     func(o json.RawMessage) (binder, []string, error) { return parseAlloc(o) },
	"extension": func(o json.RawMessage) (binder, []string, error) { return parseExtension(o) },
	WireGuard:   func(o json.RawMessage) (binder, []string, error) { return parseWireGuard(o) },
}

// instead names what to use in the place of flannel's backends that are not built. Docs/backends.md says why.
var instead = map[string]string{
	"ipsec":       `use "wireguard", which encrypts as well`,
	"aws-vpc":     cloud,
	"gce":         cloud,
	"ali-vpc":     cloud,
	"tencent-vpc": cloud,
}

const cloud = `use "extension" with a SyncCommand that writes the cloud's route table, as examples/ has them, or "alloc" with a routing daemon`

// Kinds lists the kinds of backends.
func Kinds() []string { return slices.Sorted(maps.Keys(kinds)) }

// New returns the planner for cfg on host. Keys that it does not know are ignored: see Validate.
func New(cfg subnet.Backend, host Host) (Backend, error) {
	b, _, err := parse(cfg)
	if err != nil {
		return nil, err
	}
	return b.bind(host)
}

// Validate is strict about everything in n that can be judged without a host: its backend is one of ours, the
// backend's options are in bounds, and there is no key that nobody knows.
func Validate(n subnet.Network) error {
	_, unknown, err := parse(n.Backend)
	if err != nil {
		return err
	}
	if _, six := n.Pool(subnet.IPv6); six && (n.Backend.Type == "ipip" || n.Backend.Type == "udp") {
		return errIPv4Only(n.Backend.Type)
	}
	if unknown = append(slices.Clone(n.Unknown), unknown...); len(unknown) > 0 {
		return fmt.Errorf("network config: unknown key %s", strings.Join(unknown, ", "))
	}
	return nil
}

// Check says why no host can do cfg. A host that cannot do it although Check is content may be able to later.
func Check(cfg subnet.Backend) error {
	_, _, err := parse(cfg)
	return err
}

func parse(cfg subnet.Backend) (binder, []string, error) {
	if use, ok := instead[cfg.Type]; ok {
		return nil, nil, fmt.Errorf("network config: Backend.Type: %q of flannel's is not built: %s (docs/backends.md)", cfg.Type, use)
	}
	parse, ok := kinds[cfg.Type]
	if !ok {
		return nil, nil, fmt.Errorf("network config: Backend.Type: %q is not a backend of overlayd: use one of %s",
			cfg.Type, strings.Join(Kinds(), ", "))
	}
	return parse(cfg.Options)
}

// decode reads options into v as flannel does, without regard to the case of keys, and returns the paths of keys
// that v has no field for and that are not in ignored.
func decode(options json.RawMessage, v any, known ...string) (unknown []string, err error) {
	if options == nil {
		return nil, nil
	}
	if err := json.Unmarshal(options, v); err != nil {
		var typ *json.UnmarshalTypeError
		if errors.As(err, &typ) {
			return nil, fmt.Errorf("network config: Backend.%s: %s is not a value of type %s", typ.Field, typ.Value, typ.Type)
		}
		return nil, fmt.Errorf("network config: Backend: %w", err)
	}
	var keys map[string]json.RawMessage
	if err := json.Unmarshal(options, &keys); err != nil {
		return nil, fmt.Errorf("network config: Backend: %w", err)
	}
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		if !slices.ContainsFunc(known, func(k string) bool { return strings.EqualFold(k, key) }) {
			unknown = append(unknown, "Backend."+key)
		}
	}
	return unknown, nil
}

// SameUnderlay says whether what h receives by, o receives by as well.
func (h Host) SameUnderlay(o Host) bool { return h.Link == o.Link && maps.Equal(h.Addrs, o.Addrs) }

// Equal says whether plans for h and o are the same, but for what is handed over.
func (h Host) Equal(o Host) bool {
	return h.Link == o.Link && h.MTU == o.MTU && h.VTEP == o.VTEP && h.WireGuard == o.WireGuard && bytes.Equal(h.Told, o.Told) &&
		maps.Equal(h.Addrs, o.Addrs) && maps.Equal(h.PublicIPs, o.PublicIPs)
}

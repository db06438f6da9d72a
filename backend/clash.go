package backend

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/overlayd/overlayd/subnet"
)

// claims are what a network has for itself on each of its hosts. Two can be on one host if they claim nothing of each other's.
type claims struct {
	vni   uint32            // vxlan's; 0: none
	ports map[uint16]string // UDP, by the kind of backend that listens
	ipip  bool              // protocol 4 has no number to tell networks by
}

func claimsOf(n subnet.Network) (c claims, err error) {
	c.ports = map[uint16]string{}
	b, _, err := parse(n.Backend)
	switch o := b.(type) {
	case vxlanOptions:
		c.vni, c.ports[o.Port] = o.VNI, "vxlan"
	case WireGuardOptions:
		for _, p := range n.Pools {
			c.ports[o.Port(subnet.FamilyOf(p.Prefix.Addr()))] = WireGuard
		}
	case udpOptions:
		c.ports[o.Port] = "udp"
	case ipipOptions:
		c.ipip = true
	}
	return c, err
}

// Clash says in one line why no host can be in two networks; nil if one can be. What cannot be read clashes with nothing.
func Clash(a, b subnet.Network) error {
	for _, p := range a.Pools {
		for _, q := range b.Pools {
			if p.Prefix.Overlaps(q.Prefix) {
				return fmt.Errorf("its range %s overlaps %s: use another range", p.Prefix, q.Prefix)
			}
		}
	}
	one, err := claimsOf(a)
	if err != nil {
		return nil
	}
	two, err := claimsOf(b)
	switch {
	case err != nil:
		return nil
	case one.vni != 0 && one.vni == two.vni:
		return fmt.Errorf("its VNI %d is the same: use another VNI", one.vni)
	case one.ipip && two.ipip:
		return errors.New("both are of ipip, which has no number to tell networks by: use another backend")
	}
	for port, kind := range one.ports {
		if other, taken := two.ports[port]; taken && (kind != "vxlan" || other != "vxlan") { // VNIs share a port
			return fmt.Errorf("its UDP port %d is the same (%s and %s): use another port", port, kind, other)
		}
	}
	return nil
}

// Distinct is the config of a network in which its VNI or its ports are, where it says nothing of them, those that it had before or
// the lowest that none of the others has: from the usual one on. A network that was not there before is zero.
func Distinct(config []byte, before subnet.Network, others []subnet.Network) ([]byte, error) {
	n, err := subnet.ParseNetwork(config)
	if err != nil {
		return nil, err
	}
	vnis, ports := map[uint32]bool{}, map[uint16]bool{}
	for _, o := range others {
		c, err := claimsOf(o)
		if err != nil {
			continue // no host is in it
		}
		vnis[c.vni] = true
		for port, kind := range c.ports {
			ports[port] = kind != "vxlan" || n.Backend.Type != "vxlan"
		}
	}
	b, _, err := parse(n.Backend)
	if err != nil {
		return nil, err
	}
	was, _, err := parse(before.Backend)
	if err != nil {
		was = nil // it has no numbers to keep
	}
	chosen := map[string]any{}
	given := func(key string) bool { return hasKey(n.Backend.Options, key) }
	choose := func(key string, port uint16) {
		for ; ports[port] && port != 0; port++ {
		}
		chosen[key], ports[port] = port, true
	}
	switch o := b.(type) {
	case vxlanOptions:
		if had, ok := was.(vxlanOptions); ok && !vnis[had.VNI] {
			o.VNI = had.VNI
		}
		for ; vnis[o.VNI]; o.VNI++ {
		}
		if !given("VNI") {
			chosen["VNI"] = o.VNI
		}
	case WireGuardOptions:
		if had, ok := was.(WireGuardOptions); ok && !given("ListenPort") && !given("ListenPortV6") {
			o.ListenPort, o.ListenPortV6 = had.ListenPort, had.ListenPortV6
		}
		if given("ListenPortV6") {
			ports[o.ListenPortV6] = true
		}
		if !given("ListenPort") {
			choose("ListenPort", o.ListenPort)
		}
		ports[o.ListenPort] = true
		if !given("ListenPortV6") && !o.Single() { // of IPv4 alone too: the usual one may be what was chosen before
			choose("ListenPortV6", o.ListenPortV6)
		}
	case udpOptions:
		if had, ok := was.(udpOptions); ok && !given("Port") {
			o.Port = had.Port
		}
		if !given("Port") {
			choose("Port", o.Port)
		}
	}
	return withOptions(config, n, chosen)
}

// hasKey says whether options have a key, in any case, as those who read them take it.
func hasKey(options json.RawMessage, key string) bool {
	var all map[string]json.RawMessage
	_ = json.Unmarshal(options, &all) // what is none has none
	for k := range all {
		if strings.EqualFold(k, key) {
			return true
		}
	}
	return false
}

// withOptions is the config of a network with more options of its backend.
func withOptions(config []byte, n subnet.Network, more map[string]any) ([]byte, error) {
	if len(more) == 0 {
		return config, nil
	}
	var all, options map[string]json.RawMessage
	if err := errors.Join(json.Unmarshal(config, &all), json.Unmarshal(n.Backend.Options, &options)); err != nil {
		return nil, err
	}
	for key, value := range more {
		options[key], _ = json.Marshal(value) // numbers
	}
	backend, err := json.Marshal(options)
	if err != nil {
		return nil, err
	}
	for key := range all {
		if strings.EqualFold(key, "Backend") {
			all[key] = backend
		}
	}
	text, err := json.Marshal(all)
	if err != nil {
		return nil, err
	}
	return subnet.NetworkJSON(string(text))
}

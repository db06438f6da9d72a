package subnet

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"unicode"
	"unique"
)

// Endpoint is what a lease says for one family.
type Endpoint struct {
	Subnet   netip.Prefix
	PublicIP netip.Addr      // where the host is reached on the underlay; the zero Addr if a reservation did not say
	Data     json.RawMessage `json:",omitempty"` // the backend's own: BackendData or BackendV6Data, compact JSON; nil if absent
}

// Lease is one host's claim of a subnet in each family.
type Lease struct {
	HostID    string     // overlayd's random host identity; empty if flannel made the lease
	Host      string     // the host's name, for people; empty if flannel made the lease
	Machine   string     // digest of the host's hardware, by which it knows itself without a HostID; empty: unknown
	Backend   string     // BackendType; empty for flannel's udp and alloc, and for reservations
	Endpoints []Endpoint // IPv4 before IPv6
}

// Record is a lease as etcd holds it.
type Record struct {
	Lease
	CreateRevision int64 // of the key; of two leases that overlap the older one counts
	ModRevision    int64
	LeaseID        int64 // etcd's lease; 0: the key does not expire, it is a reservation
}

// Endpoint returns what the lease says for family f, if it has that family.
func (l Lease) Endpoint(f Family) (Endpoint, bool) {
	for _, e := range l.Endpoints {
		if FamilyOf(e.Subnet.Addr()) == f {
			return e, true
		}
	}
	return Endpoint{}, false
}

// Subnets lists the subnet of each endpoint.
func (l Lease) Subnets() []netip.Prefix {
	subnets := make([]netip.Prefix, len(l.Endpoints))
	for i, e := range l.Endpoints {
		subnets[i] = e.Subnet
	}
	return subnets
}

// Outside says whether the lease is that of a peer outside the network, a laptop say, which speaks wireguard, runs no daemon, and
// may be reached nowhere: it has a name, and is no host.
func (l Lease) Outside() bool { return outside(l.HostID, l.Host, l.Backend) }

func outside(hostID, name, backend string) bool {
	return hostID == "" && name != "" && backend == "wireguard"
}

// Who is what an operator calls the lease's host.
func (l Lease) Who() string {
	name := "a flannel host"
	switch {
	case l.HostID != "":
		name = fmt.Sprintf("host %q (%s)", l.Host, l.HostID)
	case l.Outside():
		name = fmt.Sprintf("the peer %q outside the network", l.Host)
	}
	for _, e := range l.Endpoints {
		if e.PublicIP.IsValid() {
			name += " at " + e.PublicIP.String()
		}
	}
	return name
}

// SameAddresses reports whether two leases name the same underlay addresses.
func (l Lease) SameAddresses(o Lease) bool {
	return slices.EqualFunc(l.Endpoints, o.Endpoints, func(a, b Endpoint) bool { return a.PublicIP == b.PublicIP })
}

// Equal reports whether two leases say the same.
func (l Lease) Equal(o Lease) bool {
	return l.HostID == o.HostID && l.Host == o.Host && l.Machine == o.Machine && l.Backend == o.Backend &&
		slices.EqualFunc(l.Endpoints, o.Endpoints, func(a, b Endpoint) bool {
			return a.Subnet == b.Subnet && a.PublicIP == b.PublicIP && bytes.Equal(a.Data, b.Data)
		})
}

// Equal reports whether two records say the same.
func (r Record) Equal(o Record) bool {
	return r.CreateRevision == o.CreateRevision && r.ModRevision == o.ModRevision && r.LeaseID == o.LeaseID && r.Lease.Equal(o.Lease)
}

// maxValue is how many bytes of a lease's value are read. Those of flannel and overlayd have some 300, and every host
// keeps what all the others say.
const maxValue = 4 << 10

// leaseValue is the value of a lease's key: flannel's fields in flannel's order, then ours, which flannel passes over.
type leaseValue struct {
	PublicIP      string          // flannel cannot read null or ""; no address is "0.0.0.0"
	PublicIPv6    *string         // no address is null
	BackendType   string          `json:",omitempty"`
	BackendData   json.RawMessage `json:",omitempty"`
	BackendV6Data json.RawMessage `json:",omitempty"`
	HostID        string          `json:",omitempty"`
	Host          string          `json:",omitempty"`
	Machine       string          `json:",omitempty"`
}

// Value is what the lease's key holds, byte for byte as flannel writes it if HostID, Host and Machine are empty. It fails
// where [ParseLease] would.
func (l Lease) Value() ([]byte, error) {
	v := leaseValue{PublicIP: netip.IPv4Unspecified().String(), BackendType: l.Backend, HostID: l.HostID, Host: l.Host, Machine: l.Machine}
	for _, e := range l.Endpoints {
		data := &v.BackendData
		if e.Subnet.Addr().Is6() {
			data = &v.BackendV6Data
		}
		*data = e.Data
		switch {
		case !e.PublicIP.IsValid():
		case e.Subnet.Addr().Is6():
			v.PublicIPv6 = new(e.PublicIP.String())
		default:
			v.PublicIP = e.PublicIP.String()
		}
	}
	raw, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("lease %s: %w", l.Key(), err)
	}
	if _, err := ParseLease(l.Key(), raw); err != nil {
		return nil, err
	}
	return raw, nil
}

// ParseLease reads a key below <prefix>/subnets/ and its value, of every backend of flannel's and of overlayd.
// Field names count in any case; unknown fields, and those of a family that the key does not name, are passed over.
// Each family needs a PublicIP that hosts can reach, but for a reservation by host id, which is a HostID and no BackendType, and
// for what [Lease.Outside] describes.
func ParseLease(key string, value []byte) (Lease, error) {
	subnets, err := ParseKey(key)
	if err != nil {
		return Lease{}, err
	}
	l, err := parseValue(subnets, value)
	if err != nil {
		return Lease{}, fmt.Errorf("lease %s: %w", key, err)
	}
	return l, nil
}

func parseValue(subnets []netip.Prefix, raw []byte) (Lease, error) {
	v, err := unmarshalValue(raw)
	if err != nil {
		return Lease{}, err
	}
	l := Lease{
		HostID:    v.HostID,
		Host:      v.Host,
		Machine:   v.Machine,
		Backend:   unique.Make(v.BackendType).Value(), // one string for all the leases of a network
		Endpoints: make([]Endpoint, 0, len(subnets)),
	}
	nowhere := v.HostID != "" && v.BackendType == "" || outside(v.HostID, v.Host, v.BackendType) // may say no PublicIP
	for _, p := range subnets {
		e, field, text := Endpoint{Subnet: p, Data: v.BackendData}, "PublicIP", v.PublicIP
		if p.Addr().Is6() {
			e.Data, field, text = v.BackendV6Data, "PublicIPv6", ""
			if v.PublicIPv6 != nil {
				text = *v.PublicIPv6
			}
		}
		if e.PublicIP, err = parsePublicIP(text, p); err != nil {
			return Lease{}, fmt.Errorf("%s: %w", field, err)
		}
		if !e.PublicIP.IsValid() && !nowhere {
			return Lease{}, fmt.Errorf("%s: missing", field)
		}
		l.Endpoints = append(l.Endpoints, e)
	}
	return l, nil
}

func unmarshalValue(raw []byte) (leaseValue, error) {
	if len(raw) > maxValue {
		return leaseValue{}, fmt.Errorf("the value has %d bytes: at most %d are read", len(raw), maxValue)
	}
	var v leaseValue
	if err := json.Unmarshal(raw, &v); err != nil {
		if wrong, ok := errors.AsType[*json.UnmarshalTypeError](err); ok && wrong.Field != "" {
			return leaseValue{}, fmt.Errorf("%s: must be a string, is of type %s", wrong.Field, clip(wrong.Value))
		}
		return leaseValue{}, fmt.Errorf("the value is not a JSON object: %w", err)
	}
	for _, data := range []*json.RawMessage{&v.BackendData, &v.BackendV6Data} {
		switch {
		case string(*data) == "null":
			*data = nil
		case bytes.ContainsAny(*data, " \t\r\n"):
			var compact bytes.Buffer
			if err := json.Compact(&compact, *data); err != nil {
				return leaseValue{}, err
			}
			*data = bytes.Clone(compact.Bytes()) // without the buffer's spare room: leases are many
		}
	}
	for _, field := range [...]struct{ name, text string }{
		{"BackendType", v.BackendType}, {"HostID", v.HostID}, {"Host", v.Host}, {"Machine", v.Machine},
	} {
		// They are shown on terminals.
		if len(field.text) > 253 || strings.ContainsFunc(field.text, func(r rune) bool { return !unicode.IsGraphic(r) }) {
			return leaseValue{}, fmt.Errorf("%s: %q is too long or cannot be printed", field.name, clip(field.text))
		}
	}
	return v, nil
}

// parsePublicIP returns the zero Addr for the texts that say that there is none.
func parsePublicIP(text string, subnet netip.Prefix) (netip.Addr, error) {
	if text == "" || text == netip.IPv4Unspecified().String() {
		return netip.Addr{}, nil
	}
	a, err := netip.ParseAddr(text)
	f := FamilyOf(subnet.Addr())
	if err != nil || FamilyOf(a) != f || a.Is4In6() || a.Zone() != "" {
		return netip.Addr{}, fmt.Errorf("%q is not an %s address", clip(text), f)
	}
	if !a.IsGlobalUnicast() { // neither unspecified, loopback, multicast, link-local nor broadcast
		return netip.Addr{}, fmt.Errorf("%s is no address that another host can reach", a)
	}
	if subnet.Contains(a) {
		return netip.Addr{}, fmt.Errorf("%s lies inside the subnet that it is to lead to", a)
	}
	return a, nil
}

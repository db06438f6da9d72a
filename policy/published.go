package policy

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strings"
)

// What an endpoint may have.
const (
	MaxIPs   = 16
	MaxPorts = 64
	MaxName  = 253 // bytes
	maxValue = 256 << 10
)

var (
	nameRule = regexp.MustCompile(`^[A-Za-z0-9][-_.A-Za-z0-9]*$`)
	portRule = regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)*$`) // IANA's service names
)

// published is an endpoint as its host puts it into etcd, at endpoints/<namespace>/<host id>/<first address>.
type published struct {
	IPs    []netip.Addr      `json:"ips"`
	Name   string            `json:"name"`
	Labels map[string]string `json:"labels,omitempty"`
	Ports  []NamedPort       `json:"ports,omitempty"`
}

// Publish returns the key of an endpoint of the host with an id, below endpoints/, and the value.
func (e Endpoint) Publish(hostID string) (key string, value []byte, err error) {
	value, err = json.Marshal(published{e.IPs, e.Name, e.Labels, e.Ports})
	if err == nil && len(value) > maxValue {
		err = fmt.Errorf("%d bytes, where %d are allowed", len(value), maxValue)
	}
	return EndpointKey(e.Namespace, hostID, e.IPs[0]), value, err
}

// EndpointKey is the key, below endpoints/, of an endpoint of the host with an id.
func EndpointKey(namespace, hostID string, first netip.Addr) string {
	return namespace + "/" + hostID + "/" + first.String()
}

// ErrKey is the error of a key that is none of an endpoint's.
var ErrKey = errors.New("it is not namespace/host id/first address")

// ParseEndpointKey is the reverse of EndpointKey; the error is an ErrKey.
func ParseEndpointKey(key string) (namespace, hostID string, first netip.Addr, err error) {
	namespace, rest, _ := strings.Cut(key, "/")
	hostID, text, _ := strings.Cut(rest, "/")
	if hostID != "" && ValidateNamespace(namespace) == nil {
		var room [64]byte
		if first, err := netip.ParseAddr(text); err == nil && string(first.AppendTo(room[:0])) == text {
			return namespace, hostID, first, nil
		}
	}
	return "", "", first, fmt.Errorf("%.100q: %w", key, ErrKey)
}

// ParsePublished is the reverse of Publish. Whether the host may say so is not its to know.
func ParsePublished(key string, value []byte) (hostID string, e Endpoint, err error) {
	return new(PublishedReader).Read(key, value)
}

// PublishedReader reads many endpoints, one after another, with little garbage.
type PublishedReader struct{ v published }

// Read is ParsePublished; what it returns is good until it is called again.
func (r *PublishedReader) Read(key string, value []byte) (hostID string, e Endpoint, err error) {
	namespace, hostID, first, err := ParseEndpointKey(key)
	if err != nil {
		return "", e, err
	}
	if len(value) > maxValue {
		return hostID, e, fmt.Errorf("%d bytes, where %d are allowed", len(value), maxValue)
	}
	v := &r.v
	clear(v.IPs[:cap(v.IPs)]) // JSON leaves what it does not name as it is
	clear(v.Labels)
	*v = published{IPs: v.IPs[:0], Labels: v.Labels}
	if err := json.Unmarshal(value, v); err != nil {
		return hostID, e, err
	}
	e = Endpoint{Identity{namespace, v.Name, v.Labels, v.Ports}, v.IPs}
	if err := e.Validate(); err != nil {
		return hostID, e, err
	}
	if e.IPs[0] != first {
		return hostID, e, fmt.Errorf("its first address is %v, not that of its key", e.IPs[0])
	}
	return hostID, e, nil
}

// ValidName says whether an endpoint may be called so: as runtimes call containers, no longer than Kubernetes' names.
func ValidName(name string) bool { return len(name) <= MaxName && nameRule.MatchString(name) }

// Validate says what is wrong with an endpoint that somebody wrote.
func (e Endpoint) Validate() error {
	switch {
	case len(e.IPs) == 0 || len(e.IPs) > MaxIPs:
		return fmt.Errorf("ips: %d of them, where 1 to %d are allowed", len(e.IPs), MaxIPs)
	case ValidateNamespace(e.Namespace) != nil:
		return fmt.Errorf("namespace: %.80q is no name of one", e.Namespace)
	case !ValidName(e.Name):
		return fmt.Errorf("name: %.80q is none", e.Name)
	case len(e.Ports) > MaxPorts:
		return fmt.Errorf("ports: %d of them, where %d are allowed", len(e.Ports), MaxPorts)
	}
	for _, ip := range e.IPs {
		if !ip.IsValid() || ip.Is4In6() || ip.Zone() != "" || ip.IsUnspecified() || ip.IsMulticast() || ip.IsLoopback() {
			return fmt.Errorf("ips: %v is no container's", ip)
		}
	}
	if err := ValidateLabels(e.Labels); err != nil {
		return err
	}
	for _, p := range e.Ports {
		if err := p.Validate(); err != nil {
			return fmt.Errorf("ports: %w", err)
		}
	}
	return nil
}

// Validate says what is wrong with a named port.
func (p NamedPort) Validate() error {
	switch {
	case len(p.Name) > 15 || !portRule.MatchString(p.Name) || !strings.ContainsFunc(p.Name, func(r rune) bool { return r >= 'a' }):
		return fmt.Errorf("%.80q: a port's name has up to 15 lower-case letters, digits and -, and a letter among them", p.Name)
	case p.Port == 0:
		return errors.New("0 is no port")
	case p.Protocol != TCP && p.Protocol != UDP && p.Protocol != SCTP:
		return fmt.Errorf("%.80q is none of tcp, udp and sctp", string(p.Protocol))
	}
	return nil
}

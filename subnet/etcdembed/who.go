package etcdembed

import (
	"crypto/x509"
	"fmt"
	"net/netip"
	"strings"
)

// What the certificates of a network say as URI SANs (RFC 5280, 4.2.1.6), beside names and addresses.
const (
	// HostURI begins the URI of a host: its host id follows.
	HostURI = "overlayd:host/"
	// OperatorURI is who may do everything.
	OperatorURI = "overlayd:operator"
	// MemberURI is a host that runs a member of etcd; it has its HostURI too.
	MemberURI = "overlayd:member"
)

// Who is whom a certificate names.
type Who struct {
	Name     string       // the common name, for people
	Host     string       // the host id; empty: a host bound by its addresses alone, or an operator
	Operator bool         // it may do everything
	Member   bool         // it runs a member of etcd
	IPs      []netip.Addr // the addresses that are its own; no loopback, which every certificate has
}

// ParseWho reads what a verified certificate says. One without a URI of these, as "overlayctl certs issue" makes it, is a
// host that is bound by its addresses alone. A certificate that names two hosts, or says what is not known here, is an error.
func ParseWho(c *x509.Certificate) (Who, error) {
	w := Who{Name: c.Subject.CommonName}
	for _, u := range c.URIs {
		id, host := strings.CutPrefix(u.String(), HostURI)
		switch text := u.String(); {
		case text == OperatorURI:
			w.Operator = true
		case text == MemberURI:
			w.Member = true
		case host && id != "" && w.Host == "":
			w.Host = id
		case u.Scheme == "overlayd":
			return Who{}, fmt.Errorf("the certificate of %q says %q, which makes no sense: issue another", w.Name, text)
		}
	}
	for _, raw := range c.IPAddresses {
		if ip, ok := netip.AddrFromSlice(raw); ok && !ip.Unmap().IsLoopback() {
			w.IPs = append(w.IPs, ip.Unmap())
		}
	}
	return w, nil
}

// String is what logs and errors call it.
func (w Who) String() string {
	switch {
	case w.Operator:
		return fmt.Sprintf("operator %q", w.Name)
	case w.Host != "":
		return fmt.Sprintf("host %q (%s)", w.Name, w.Host)
	}
	return fmt.Sprintf("host %q", w.Name)
}

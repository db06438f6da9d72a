// Package who is whom a certificate of a network names: its makers and etcd's doorkeeper mean the same by it.
package who

import (
	"crypto/x509"
	"fmt"
	"net/netip"
	"net/url"
	"strings"
)

// What the certificates of a network say as URI SANs (RFC 5280, 4.2.1.6), beside names and addresses.
const (
	hostURI     = "overlayd:host/" // the host id follows
	operatorURI = "overlayd:operator"
	memberURI   = "overlayd:member"
)

// Who is whom a certificate names.
type Who struct {
	Name     string       // the common name, for people
	Host     string       // the host id; empty: a host bound by its addresses alone, or an operator
	Operator bool         // it may do everything
	Member   bool         // a host that runs a member of etcd, and lets others join
	IPs      []netip.Addr // the addresses that are its own; no loopback, which every server's certificate has
}

// Parse reads what a verified certificate says. One without a URI of these, as "overlayctl certs issue" makes it, is a
// host that is bound by its addresses alone. A certificate that names two hosts, or says what is not known here, is an error.
func Parse(c *x509.Certificate) (Who, error) {
	w := Who{Name: c.Subject.CommonName}
	for _, u := range c.URIs {
		id, host := strings.CutPrefix(u.String(), hostURI)
		switch text := u.String(); {
		case text == operatorURI:
			w.Operator = true
		case text == memberURI:
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

// URIs are what [Parse] reads Host, Operator and Member from.
func (w Who) URIs() (uris []*url.URL) {
	add := func(text string) {
		scheme, opaque, _ := strings.Cut(text, ":")
		uris = append(uris, &url.URL{Scheme: scheme, Opaque: opaque})
	}
	if w.Host != "" {
		add(hostURI + w.Host)
	}
	if w.Operator {
		add(operatorURI)
	}
	if w.Member {
		add(memberURI)
	}
	return uris
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

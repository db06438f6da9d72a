// Package who is what a certificate of a network says of its holder: makers of certificates and those who are shown one
// read it alike.
package who

import (
	"crypto/x509"
	"net/netip"
	"net/url"
	"strings"
)

// URIs in the subject alternative names of a certificate.
const (
	hostURI     = "overlayd:host/" // and the host's id
	operatorURI = "overlayd:operator"
	memberURI   = "overlayd:member"
)

// Who holds a certificate.
type Who struct {
	Host     string       // the host's id; empty: a host that is known by its addresses alone, or no host
	Operator bool         // may do what changes the network for all
	Member   bool         // a host that runs etcd for the others, and signs their certificates
	Name     string       // the common name
	IPs      []netip.Addr // never IPv4 in IPv6
}

// Of reads who a certificate is for. It does not ask who has signed it.
func Of(cert *x509.Certificate) Who {
	w := Who{Name: cert.Subject.CommonName}
	for _, uri := range cert.URIs {
		switch text := uri.String(); text {
		case operatorURI:
			w.Operator = true
		case memberURI:
			w.Member = true
		default:
			if id, ok := strings.CutPrefix(text, hostURI); ok && w.Host == "" {
				w.Host = id
			}
		}
	}
	for _, b := range cert.IPAddresses {
		if ip, ok := netip.AddrFromSlice(b); ok {
			w.IPs = append(w.IPs, ip.Unmap())
		}
	}
	return w
}

// URIs are what [Of] reads Host, Operator and Member from.
func (w Who) URIs() (uris []*url.URL) {
	add := func(opaque string) {
		scheme, opaque, _ := strings.Cut(opaque, ":")
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

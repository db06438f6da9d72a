// Package certs makes the certificates by which the hosts of a network know each other at etcd: one CA, and one
// certificate for each host, which shows it as a client and, where etcd is embedded, as the server.
package certs

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"
)

const (
	// caLife is how long a CA is valid: its key never leaves the directory, and whoever has it can renew it.
	caLife = 10 * 365 * 24 * time.Hour
	// backdate lets hosts whose clocks are behind use a new certificate.
	backdate = time.Hour
)

// Names are what a host's certificate is valid for.
type Names struct {
	DNS []string
	IPs []netip.Addr
}

// local are the names by which every host reaches its own etcd.
var local = Names{
	DNS: []string{"localhost"},
	IPs: []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()},
}

// pair is a certificate and its key.
type pair struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// caTemplate is what a new CA says of itself. No two have the same name: a server tells its clients by name which CAs
// it takes, so that one with another's certificate can say what is wrong.
func caTemplate() *x509.Certificate {
	return &x509.Certificate{
		Subject:               pkix.Name{CommonName: "overlayd CA " + strings.ToLower(rand.Text()[:8])},
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true, // it signs hosts, no other CA
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
}

// hostTemplate is what a host's certificate says. The common name is what an etcd with users takes for the user.
func hostTemplate(name string, n Names) *x509.Certificate {
	t := &x509.Certificate{
		Subject:               pkix.Name{CommonName: name},
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, dns := range append([]string{name}, slices.Concat(n.DNS, local.DNS)...) {
		if !slices.Contains(t.DNSNames, dns) {
			t.DNSNames = append(t.DNSNames, dns)
		}
	}
	for _, ip := range slices.Concat(n.IPs, local.IPs) {
		if b := net.IP(ip.AsSlice()); !slices.ContainsFunc(t.IPAddresses, b.Equal) {
			t.IPAddresses = append(t.IPAddresses, b)
		}
	}
	return t
}

// sign makes a certificate for a public key after template, valid for life from now on, and signed by ca; by the template's
// own key if ca has no certificate. It is not valid for longer than ca is.
func sign(template *x509.Certificate, public crypto.PublicKey, ca pair, now time.Time, life time.Duration) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127)) // at most 20 bytes (RFC 5280, 4.1.2.2)
	if err != nil {
		return nil, err
	}
	template.SerialNumber = serial
	template.NotBefore, template.NotAfter = now.Add(-min(backdate, life)), now.Add(life)
	parent := template
	if ca.cert != nil {
		parent = ca.cert
		if !now.Before(ca.cert.NotAfter) {
			return nil, fmt.Errorf("the CA ended on %s: renew it first", ca.cert.NotAfter.Format(time.DateOnly))
		}
		if template.NotAfter.After(ca.cert.NotAfter) {
			template.NotAfter = ca.cert.NotAfter
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, ca.key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// NewKey makes a key of the kind that all certificates here are for: ECDSA P-256.
func NewKey() (*ecdsa.PrivateKey, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

// checkName refuses what cannot be a host's name and part of a file's: RFC 1123's letters, digits, dots and hyphens.
func checkName(name string) error {
	if name == caName {
		return fmt.Errorf("%q is the CA's own name", name)
	}
	ok := name != "" && len(name) <= 253 && name[0] != '-' && name[0] != '.'
	for _, c := range name {
		ok = ok && (c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '.')
	}
	if !ok {
		return fmt.Errorf("%q is not a host name", name)
	}
	if _, err := netip.ParseAddr(name); err == nil {
		return errors.New("a host has a name; its addresses are given with --ip")
	}
	return nil
}

package certs

import (
	"crypto/x509"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/overlayd/overlayd/subnet/who"
)

// TestAuthority writes a CA to its file, reads it, and signs for hosts of each kind.
func TestAuthority(t *testing.T) {
	t.Parallel()
	made, err := NewAuthority(start)
	if err != nil {
		t.Fatal(err)
	}
	bundle, err := made.Bundle()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "ca.key")
	write(t, path, string(bundle))
	ca, err := ReadAuthority(path)
	if err != nil {
		t.Fatal(err)
	}
	if Fingerprint(ca.Certificate()) != Fingerprint(made.Certificate()) {
		t.Error("what was read is another CA")
	}
	ips := []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}
	both := []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	for _, c := range []struct {
		who   who.Who
		dns   []string
		usage []x509.ExtKeyUsage
	}{
		{who.Who{Name: "a", Host: "id", IPs: ips}, nil, both[1:]},
		{who.Who{Name: "a", Host: "id", Member: true, IPs: ips}, []string{"a", "localhost"}, both},
		{who.Who{Name: "a", Operator: true}, nil, both[1:]},
	} {
		key, err := NewKey()
		if err != nil {
			t.Fatal(err)
		}
		cert, err := ca.Sign(&key.PublicKey, c.who, start, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		got, err := who.Parse(cert)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(c.who, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
			t.Errorf("whom it names (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff([]any{c.dns, c.usage}, []any{cert.DNSNames, cert.ExtKeyUsage}); diff != "" || cert.IsCA {
			t.Errorf("names and uses (-want +got):\n%s", diff)
		}
		if err := cert.CheckSignatureFrom(ca.Certificate()); err != nil {
			t.Error(err)
		}
	}
}

func TestAuthorityRefused(t *testing.T) {
	t.Parallel()
	ca, err := NewAuthority(start)
	if err != nil {
		t.Fatal(err)
	}
	other, err := NewAuthority(start)
	if err != nil {
		t.Fatal(err)
	}
	host, err := ca.Issue(who.Who{Name: "a"}, start, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	mixed, err := Bundle(ca.Certificate(), other.ca.key)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "ca.key")
	if _, err := ReadAuthority(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("where there is none: %v", err)
	}
	for want, content := range map[string][]byte{
		"is empty":               nil,
		"is no CA's certificate": host,
		"not the certificate's":  mixed,
		"no private key in it":   PEM(ca.Certificate()),
		"no certificate in it":   []byte("nonsense"),
	} {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadAuthority(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	for want, w := range map[string]who.Who{"not a host name": {Name: "../a"}, "the CA's own name": {Name: "ca"}} {
		if _, err := ca.Issue(w, start, time.Hour); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	if _, err := ca.Issue(who.Who{Name: "a"}, start.Add(11*year), time.Hour); err == nil || !strings.Contains(err.Error(), "the CA ended") {
		t.Errorf("%v of a CA that has ended", err)
	}
}

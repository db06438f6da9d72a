package certs

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"
)

// TestHandshake has two hosts know each other, and nobody else.
func TestHandshake(t *testing.T) {
	t.Parallel()
	d := newDir(t)
	d.Now = time.Now
	addCA(t, d)
	issue(t, d, "a", Names{IPs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}})
	issue(t, d, "b", Names{})
	foreign := newDir(t)
	foreign.Now = time.Now
	addCA(t, foreign)
	issue(t, foreign, "b", Names{})

	if err := handshake(t, d, "192.0.2.1", d, "b"); err != nil {
		t.Errorf("b at a: %v", err)
	}
	if err := handshake(t, d, "192.0.2.2", d, "b"); err == nil {
		t.Error("a is taken for who has another address")
	}
	if err := handshake(t, d, "192.0.2.1", foreign, "b"); err == nil {
		t.Error("a lets in whom another CA signed")
	}

	// The CA and the host are renewed; who has the old ones goes on.
	old := content(t, d)
	if _, err := d.Renew("ca", 0); err != nil {
		t.Fatal(err)
	}
	if err := handshake(t, d, "192.0.2.1", d, "b"); err != nil {
		t.Errorf("with a new CA: %v", err)
	}
	if _, err := d.Renew("a", year); err != nil {
		t.Fatal(err)
	}
	now := content(t, d)
	if now["a.crt"] == old["a.crt"] || now["ca.crt"] == old["ca.crt"] {
		t.Error("nothing was renewed")
	}
	if now["a.key"] != old["a.key"] || now["ca.key"] != old["ca.key"] {
		t.Error("a key has changed")
	}
	write(t, d.Path+"/ca.crt", old["ca.crt"])
	if err := handshake(t, d, "192.0.2.1", d, "b"); err != nil {
		t.Errorf("with the old CA and a new certificate: %v", err)
	}
}

// handshake connects a client of one directory to the server a of another, which it takes for the host serverName.
func handshake(t *testing.T, server Dir, serverName string, client Dir, name string) error {
	t.Helper()
	conf := func(d Dir, name string) *tls.Config {
		cert, err := tls.LoadX509KeyPair(d.Files(name))
		if err != nil {
			t.Fatal(err)
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM([]byte(content(t, d)["ca.crt"])) {
			t.Fatal("no CA")
		}
		return &tls.Config{
			Certificates: []tls.Certificate{cert}, RootCAs: pool, ClientCAs: pool,
			ClientAuth: tls.RequireAndVerifyClientCert, ServerName: serverName,
		}
	}
	here, there := net.Pipe()
	defer here.Close()
	defer there.Close()
	done := make(chan error, 1)
	go func() {
		err := tls.Server(there, conf(server, "a")).Handshake()
		there.Close()
		done <- err
	}()
	err := tls.Client(here, conf(client, name)).Handshake()
	here.Close()
	return errors.Join(err, <-done)
}

package enrol

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/overlayd/overlayd/cmd/internal/certs"
	"github.com/overlayd/overlayd/subnet/who"
)

// TestRenew has a renewer replace short certificates again and again, each for another key, while they are read.
func TestRenew(t *testing.T) {
	t.Parallel()
	const life = 3 * time.Second
	m := newMember(t, func(c *ServerConfig) { c.Life = life })
	token := m.token(time.Hour, 0)
	issued, err := join(t, m.client(nil), token, "hostid", "host-2")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	writeState(t, dir, CAFile, certs.PEM(issued.CA))
	writeState(t, dir, JoinedFile, []byte(m.server.Addr().String()+"\n"))
	writeState(t, dir, HostFile, issued.Bundle)
	r := &Renewer{
		StateDir: dir, Etcd: func() []string { return nil },
		Addrs: func() []netip.Addr { return []netip.Addr{loopback, netip.MustParseAddr("127.0.0.3")} },
		Log:   slog.New(slog.DiscardHandler),
	}
	run(t, r)
	file := filepath.Join(dir, HostFile)
	keys := map[string]bool{}
	until(t, "three certificates have been seen", func() error {
		pair, err := LoadPair(file)
		if err != nil {
			t.Errorf("key and certificate do not fit together: %v", err)
			return nil
		}
		if time.Now().After(pair.Leaf.NotAfter) {
			t.Errorf("it has ended at %s", pair.Leaf.NotAfter)
			return nil
		}
		keys[string(pair.Leaf.RawSubjectPublicKeyInfo)] = true
		if len(keys) < 3 {
			return fmt.Errorf("%d", len(keys))
		}
		if ips := holder(pair.Leaf); len(pair.Leaf.IPAddresses) != 2 {
			t.Errorf("it names %v", ips)
		}
		return nil
	})
	if err := r.Err(); err != nil {
		t.Error(err)
	}
	if info, err := os.Stat(file); err != nil || info.Mode() != 0o400 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}

func run(t *testing.T, r *Renewer) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// TestRenewByOwnCA has a host that signs renew for itself, after its certificate has ended, and with nobody there.
func TestRenewByOwnCA(t *testing.T) {
	t.Parallel()
	m := newMember(t, nil)
	dir := t.TempDir()
	bundle, err := m.authority.Bundle()
	if err != nil {
		t.Fatal(err)
	}
	writeState(t, dir, AuthorityFile, bundle)
	w := who.Who{Name: "first", Host: "firstid", Member: true, IPs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}
	writeState(t, dir, HostFile, m.bundle(w, time.Nanosecond))
	run(t, &Renewer{StateDir: dir, Etcd: func() []string { return nil }, Addrs: func() []netip.Addr { return nil }, Log: slog.New(slog.DiscardHandler)})
	until(t, "the certificate is renewed", func() error {
		cert, err := certs.Read(filepath.Join(dir, HostFile))
		if err != nil {
			return err
		}
		if time.Until(cert.NotAfter) < time.Hour {
			return errors.New("not yet")
		}
		if got := holder(cert); got.Host != w.Host || !got.Member || len(got.IPs) != 1 {
			t.Errorf("it names %+v", got)
		}
		return nil
	})
}

// TestRenewRefused asks for the next certificate with one that does not give the right to it.
func TestRenewRefused(t *testing.T) {
	t.Parallel()
	m := newMember(t, nil)
	token := m.token(time.Hour, 0)
	if _, err := join(t, m.client(nil), token, "hostid", "host-2"); err != nil {
		t.Fatal(err)
	}
	good := who.Who{Name: "host-2", Host: "hostid"}
	for name, c := range map[string]struct {
		cert *tls.Certificate
		want string
	}{
		"none":           {nil, "no certificate of this network was shown"},
		"another CA's":   {newMember(t, nil).pair(good, time.Hour), "no certificate of this network was shown"},
		"removed":        {m.pair(who.Who{Name: "gone", Host: "goneid"}, time.Hour), "gone was removed from the network"},
		"ended":          {m.pair(good, time.Nanosecond), "join again with a token; nothing else is lost"},
		"an operator's":  {m.pair(who.Who{Name: "op", Operator: true}, time.Hour), "no certificate of this network was shown"},
		"by an old tool": {m.pair(who.Who{Name: "host-2"}, time.Hour), "no certificate of this network was shown"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := m.client(c.cert).Visit(t.Context(), nil, mustKey(t), nil)
			says(t, err, c.want)
			request, err := certs.NewRequest(mustKey(t))
			if err != nil {
				t.Fatal(err)
			}
			_, err = m.client(c.cert).post(t.Context(), netip.Addr{}, "/v1/renew", renewRequest{Request: request}, new(issued))
			says(t, err, c.want)
		})
	}
	// A host that asks as another is not understood, and gets nothing but its own.
	request, err := certs.NewRequest(mustKey(t))
	if err != nil {
		t.Fatal(err)
	}
	c := m.client(m.pair(good, time.Hour))
	_, err = c.post(t.Context(), netip.Addr{}, "/v1/renew", map[string]any{"request": request, "host": "firstid"}, new(issued))
	says(t, err, "the request is not understood")
	v, err := c.Visit(t.Context(), nil, mustKey(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	got, err := v.Renew(t.Context(), "hostid")
	if err != nil || holder(got.Certificate).Host != "hostid" || holder(got.Certificate).Member {
		t.Errorf("%+v, %v", got, err)
	}
}

// TestRenewerComplains says what is wrong only when half of what was left has gone by.
func TestRenewerComplains(t *testing.T) {
	t.Parallel()
	m := newMember(t, nil)
	for _, c := range []struct {
		name string
		left time.Duration // of six hours, which began six hours ago less that
		want bool
	}{{"a third is left", 2 * time.Hour, false}, {"less than a sixth", 50 * time.Minute, true}, {"it has ended", -time.Minute, true}} {
		bundle, err := m.authority.Issue(who.Who{Name: "a", Host: "a"}, time.Now().Add(c.left-5*time.Hour), 5*time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		writeState(t, dir, HostFile, bundle)
		writeState(t, dir, CAFile, certs.PEM(m.authority.Certificate()))
		writeState(t, dir, JoinedFile, []byte("127.0.0.1:1"))
		r := &Renewer{StateDir: dir, Etcd: func() []string { return []string{"unix:///x"} }, Addrs: func() []netip.Addr { return nil }, Log: slog.New(slog.DiscardHandler)}
		_, r.err = r.step(t.Context(), 0)
		if err := r.Err(); (err != nil) != c.want {
			t.Errorf("%s: %v", c.name, err)
		} else if err != nil {
			says(t, err, "cannot be renewed: 127.0.0.1:1 refuses connections")
		}
	}
}

// TestRenewMoved has a host get another address long before its certificate ends, and one that the server does not see.
func TestRenewMoved(t *testing.T) {
	t.Parallel()
	m := newMember(t, nil)
	issued, err := join(t, m.client(nil), m.token(time.Hour, 0), "hostid", "host-2")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	writeState(t, dir, CAFile, certs.PEM(issued.CA))
	writeState(t, dir, JoinedFile, []byte(m.server.Addr().String()))
	writeState(t, dir, HostFile, issued.Bundle)
	addrs := []netip.Addr{loopback}
	r := &Renewer{StateDir: dir, Etcd: func() []string { return nil }, Addrs: func() []netip.Addr { return addrs }, Log: slog.New(slog.DiscardHandler), tried: addrs}
	for _, c := range []struct {
		name    string
		addrs   []netip.Addr
		renewed bool
		ips     int
	}{
		{"the same", []netip.Addr{loopback}, false, 1},
		{"not known yet", nil, false, 1},
		{"another", []netip.Addr{loopback, netip.MustParseAddr("127.0.0.5")}, true, 2},
		{"one that is nobody's", []netip.Addr{loopback, netip.MustParseAddr("192.0.2.5")}, true, 1},
		{"the same again", []netip.Addr{loopback, netip.MustParseAddr("192.0.2.5")}, false, 1},
	} {
		addrs = c.addrs
		before := readFile(t, filepath.Join(dir, HostFile))
		if _, err := r.step(t.Context(), 0); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		pair, err := LoadPair(filepath.Join(dir, HostFile))
		if err != nil {
			t.Fatal(err)
		}
		if renewed := string(before) != string(readFile(t, filepath.Join(dir, HostFile))); renewed != c.renewed || len(pair.Leaf.IPAddresses) != c.ips {
			t.Errorf("%s: renewed %t, for %v", c.name, renewed, pair.Leaf.IPAddresses)
		}
	}
}

// TestRenewMember has a host that signs renew while its certificate is not valid yet, for it was made when the clock was ahead, and
// keep the addresses at which it is reached, though they are not what the network meets it by.
func TestRenewMember(t *testing.T) {
	t.Parallel()
	m := newMember(t, nil)
	bundle, err := m.authority.Bundle()
	if err != nil {
		t.Fatal(err)
	}
	listens, lost, public := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::1")
	for name, made := range map[string]time.Time{"the clock was ahead": time.Now().Add(3 * Life), "it is time": time.Now().Add(-Life + time.Hour)} {
		host, err := m.authority.Issue(who.Who{Name: "first", Host: "firstid", Member: true, IPs: []netip.Addr{listens, lost, public}}, made, Life)
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		writeState(t, dir, AuthorityFile, bundle)
		writeState(t, dir, HostFile, host)
		r := &Renewer{
			StateDir: dir, Etcd: func() []string { return nil }, Addrs: func() []netip.Addr { return []netip.Addr{public} }, Log: slog.New(slog.DiscardHandler),
			local: func() ([]net.Addr, error) {
				return []net.Addr{&net.IPNet{IP: net.IPv4(192, 0, 2, 1), Mask: net.CIDRMask(24, 32)}}, nil
			},
		}
		if _, err := r.step(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		cert, err := certs.Read(filepath.Join(dir, HostFile))
		if err != nil {
			t.Fatal(err)
		}
		if now := time.Now(); now.Before(cert.NotBefore) || now.Add(Life/2).After(cert.NotAfter) {
			t.Errorf("%s: valid from %s to %s", name, cert.NotBefore, cert.NotAfter)
		}
		if got := holder(cert).IPs; !slices.Equal(got, []netip.Addr{public, listens}) {
			t.Errorf("%s: for %v", name, got)
		}
	}
}

// An address that cannot be proved for a while is not lost with the next renewal, but the certificate does not end for its sake.
func TestRenewalLosesNoAddress(t *testing.T) {
	t.Parallel()
	m := newMember(t, func(c *ServerConfig) { c.Life = time.Hour })
	issued, err := join(t, m.client(nil), m.token(time.Hour, 0), "hostid", "host-2")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	writeState(t, dir, HostFile, issued.Bundle)
	pair, err := LoadPair(filepath.Join(dir, HostFile))
	if err != nil {
		t.Fatal(err)
	}
	has, hasNot := netip.MustParseAddr("192.0.2.5"), netip.MustParseAddr("192.0.2.77")
	for name, tt := range map[string]struct {
		addr netip.Addr
		left time.Duration
		want bool
	}{
		"early":   {has, 20 * time.Minute, true},
		"late":    {has, 5 * time.Minute, false},
		"not had": {hasNot, 20 * time.Minute, false},
	} {
		last := *pair.Leaf
		last.NotAfter = time.Now().Add(tt.left)
		last.NotBefore, last.IPAddresses = last.NotAfter.Add(-time.Hour), []net.IP{has.AsSlice()}
		v := &Visit{Unproven: []Unproven{{tt.addr, errors.New("no way")}}}
		if err := loses(v, &last); (err != nil) != tt.want {
			t.Errorf("%s: %v", name, err)
		}
	}
}

package enrol

import (
	"bytes"
	"crypto/tls"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/overlayd/overlayd/cmd/internal/certs"
)

// TestJoinAsMember asks to run etcd with a token that lets hosts join, and gets nothing; with one for members it gets the
// CA's key, and etcd is told. A host that was a member is none when it joins by a token for hosts.
func TestJoinAsMember(t *testing.T) {
	t.Parallel()
	told := make(chan netip.Addr, 1)
	m := newMember(t, func(cfg *ServerConfig) { cfg.Admit = func(at netip.Addr) { told <- at } })
	plain := m.token(time.Hour, 0)
	ask := func(token Token, member bool, had *Issued) (Issued, error) {
		t.Helper()
		c := m.client(nil)
		if had != nil {
			pair, err := tls.X509KeyPair(had.Bundle, had.Bundle)
			if err != nil {
				t.Fatal(err)
			}
			c.Certificate = &pair
		}
		v, err := c.Visit(t.Context(), &token, mustKey(t), nil)
		if err != nil {
			t.Fatal(err)
		}
		v.Member = member
		return v.Join(t.Context(), token, "hostid", "host-2")
	}
	got, err := ask(plain, true, nil)
	if _, refused := errors.AsType[Refused](err); !refused || !strings.Contains(err.Error(), "and not run etcd") || got.Authority != nil {
		t.Errorf("by a token for hosts: %v, %v", got, err)
	}
	if hosts, err := Hosts(t.Context(), m.store); err != nil || len(hosts) != 1 { // the first
		t.Errorf("hosts %v, %v", hosts, err)
	}
	token, err := CreateToken(t.Context(), m.store, certs.Fingerprint(m.authority.Certificate()), time.Now(), time.Hour, TokenRecord{Uses: 1, Member: true})
	if err != nil {
		t.Fatal(err)
	}
	if got, err = ask(token, true, nil); err != nil {
		t.Fatal(err)
	}
	if want, err := m.authority.Bundle(); err != nil || !bytes.Equal(got.Authority, want) || !holder(got.Certificate).Member {
		t.Errorf("a member's: %v, %v", holder(got.Certificate), err)
	}
	if at := <-told; at != loopback {
		t.Errorf("etcd was told of %s", at)
	}
	if got, err = ask(plain, false, &got); err != nil || got.Authority != nil || holder(got.Certificate).Member {
		t.Errorf("afterwards by a token for hosts: %v, %v", got, err)
	}
}

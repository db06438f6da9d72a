package enrol

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"net"
	"net/netip"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/overlayd/overlayd/cmd/internal/certs"
	"github.com/overlayd/overlayd/subnet/etcdstore"
	"github.com/overlayd/overlayd/subnet/who"
)

// TestJoin joins, and finds in the certificate who the host is and where, and in etcd that it has joined.
func TestJoin(t *testing.T) {
	t.Parallel()
	m := newMember(t, nil)
	token := m.token(time.Hour, 2)
	another := netip.MustParseAddr("127.0.0.2") // every address of 127/8 is this computer's
	got, err := join(t, m.client(nil), token, "hostid", "host-2", loopback, another, netip.MustParseAddr("192.0.2.9"))
	if err != nil {
		t.Fatal(err)
	}
	cert := got.Certificate
	var ips []string
	for _, ip := range cert.IPAddresses {
		ips = append(ips, ip.String())
	}
	if diff := cmp.Diff([]string{"127.0.0.1", "127.0.0.2"}, ips); diff != "" {
		t.Errorf("addresses (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(who.Who{Name: "host-2", Host: "hostid"}, holder(cert)); diff != "" {
		t.Errorf("whom it names (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, cert.ExtKeyUsage); diff != "" {
		t.Errorf("what it is good for (-want +got):\n%s", diff)
	}
	if life := time.Until(cert.NotAfter); life < Life-time.Hour || life > Life {
		t.Errorf("it is valid for %s", life)
	}
	record, ok := m.record("hostid")
	if !ok || record.Name != "host-2" || record.Serial != cert.SerialNumber.Text(16) || record.Token != token.ID {
		t.Errorf("in etcd: %+v, %t", record, ok)
	}
	if n := m.used(token); n != 1 {
		t.Errorf("the token was used %d times", n)
	}
	until(t, "the member is in the list", func() error {
		if record, ok := m.record("firstid"); !ok || !record.Member {
			return net.ErrClosed
		}
		return nil
	})
}

// TestJoinRefused finds one line for each mistake, and no use of the token gone by it.
func TestJoinRefused(t *testing.T) {
	t.Parallel()
	m := newMember(t, nil)
	good := m.token(time.Hour, 0)
	if _, err := join(t, m.client(nil), good, "there", "host-there"); err != nil {
		t.Fatal(err)
	}
	wrong := m.token(time.Hour, 0)
	wrong.Secret = NewToken(wrong.CA).Secret
	unknown := good
	unknown.ID = "nobody"
	revoked := m.token(time.Hour, 0)
	if err := RevokeToken(t.Context(), m.store, revoked.ID); err != nil {
		t.Fatal(err)
	}
	ended := m.token(-time.Minute, 0)
	usedUp := m.token(time.Hour, 1)
	if _, err := join(t, m.client(nil), usedUp, "last", "host-last"); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		token      Token
		host, name string
		want       string
	}{
		"wrong secret":           {wrong, "a", "host-a", "the token is wrong"},
		"unknown token":          {unknown, "a", "host-a", "the token is wrong"},
		"ended":                  {ended, "a", "host-a", ended.ID + " is ended"},
		"revoked":                {revoked, "a", "host-a", revoked.ID + " is revoked"},
		"used up":                {usedUp, "a", "host-a", usedUp.ID + " is used up"},
		"another host's id":      {good, "there", "host-a", `has joined already, as host-there, and does not show`},
		"another host's name":    {good, "a", "host-there", `another host has joined as host-there: join with another --name`},
		"no id":                  {good, "", "host-a", `"" is not a host's id`},
		"an id that leaves tree": {good, "../config", "host-a", "is not a host's id"},
		"no name":                {good, "a", "", "is not a host name"},
		"a name that is a path":  {good, "a", "../a", "is not a host name"},
	} {
		t.Run(name, func(t *testing.T) {
			before := m.used(c.token)
			_, err := join(t, m.client(nil), c.token, c.host, c.name)
			says(t, err, c.want)
			if after := m.used(c.token); after != before {
				t.Errorf("the token was used %d times before, and %d after", before, after)
			}
			if _, ok := m.record(c.host); ok && c.host != "there" {
				t.Error("the host is in etcd")
			}
		})
	}
}

// TestLastUse has hosts that come at once share what is left of a token's uses.
func TestLastUse(t *testing.T) {
	t.Parallel()
	m := newMember(t, nil)
	token := m.token(time.Hour, 3)
	var joined atomic.Int32
	var group sync.WaitGroup
	for i := range 12 {
		group.Go(func() {
			id := string(rune('a' + i))
			if _, err := join(t, m.client(nil), token, id, "host-"+id); err == nil {
				joined.Add(1)
			}
		})
	}
	group.Wait()
	if n := joined.Load(); n != 3 || m.used(token) != 3 {
		t.Errorf("%d hosts have joined, and the token was used %d times, of 3", n, m.used(token))
	}
}

// TestInterrupted joins again with the key of a host that was let in and never heard of it, by a token that is used up.
func TestInterrupted(t *testing.T) {
	t.Parallel()
	m := newMember(t, nil)
	token := m.token(time.Hour, 1)
	key, err := certs.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		v, err := m.client(nil).Visit(t.Context(), &token, key, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := v.Join(t.Context(), token, "hostid", "host-2"); err != nil {
			t.Fatal(err)
		}
	}
	if n := m.used(token); n != 1 {
		t.Errorf("the token was used %d times", n)
	}
	_, err = join(t, m.client(nil), token, "hostid", "host-2")
	says(t, err, "is used up")
}

// hangsUp is a store whose etcd has taken in the use of a token when the host that asked goes away.
type hangsUp struct {
	Store
	hangUp func()
}

func (h hangsUp) PutDocument(ctx context.Context, kind string, d etcdstore.Document, life time.Duration) error {
	err := h.Store.PutDocument(ctx, kind, d, life)
	if kind == tokenKind && d.Revision != 0 {
		h.hangUp()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(500 * time.Millisecond): // the server has heard of it by then
		}
	}
	return err
}

// TestHungUp has the host go away at the moment when its token's only use is taken: with the same key it is let in.
func TestHungUp(t *testing.T) {
	t.Parallel()
	asks, hangUp := context.WithCancel(t.Context())
	m := newMember(t, func(c *ServerConfig) { c.Store = hangsUp{c.Store, hangUp} })
	token := m.token(time.Hour, 1)
	key := mustKey(t)
	v, err := m.client(nil).Visit(t.Context(), &token, key, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.Join(asks, token, "hostid", "host-2"); err == nil {
		t.Fatal("the host did not hang up")
	}
	until(t, "the host is let in", func() error {
		if v, err = m.client(nil).Visit(t.Context(), &token, key, nil); err == nil {
			_, err = v.Join(t.Context(), token, "hostid", "host-2")
		}
		return err
	})
	if n := m.used(token); n != 1 {
		t.Errorf("the token was used %d times", n)
	}
}

// TestSlept joins again after the certificate has ended, as who the host was; who has not the old key is not it.
func TestSlept(t *testing.T) {
	t.Parallel()
	m := newMember(t, nil)
	token := m.token(time.Hour, 0)
	if _, err := join(t, m.client(nil), token, "hostid", "host-2"); err != nil {
		t.Fatal(err)
	}
	slept := m.pair(who.Who{Name: "host-2", Host: "hostid"}, time.Nanosecond)
	_, err := m.client(slept).Visit(t.Context(), nil, mustKey(t), nil)
	says(t, err, "join again with a token")
	if _, err := join(t, m.client(slept), token, "hostid", "host-2"); err != nil {
		t.Errorf("with the certificate that has ended: %v", err)
	}
	other := m.pair(who.Who{Name: "host-3", Host: "otherid"}, time.Hour)
	_, err = join(t, m.client(other), token, "hostid", "host-2")
	says(t, err, "has joined already")
	foreign := newMember(t, nil).pair(who.Who{Name: "host-2", Host: "hostid"}, time.Hour)
	_, err = join(t, m.client(foreign), token, "hostid", "host-2")
	says(t, err, "has joined already")
}

func mustKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := certs.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// TestGreedyRequest asks, in the request for the certificate, to be everybody.
func TestGreedyRequest(t *testing.T) {
	t.Parallel()
	m := newMember(t, nil)
	token := m.token(time.Hour, 0)
	v, err := m.client(nil).Visit(t.Context(), &token, mustKey(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	v.request, err = x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject:     pkix.Name{CommonName: "first"},
		DNSNames:    []string{"first", "localhost"},
		IPAddresses: []net.IP{net.IPv4(192, 0, 2, 1)},
		URIs:        who.Who{Host: "firstid", Operator: true, Member: true}.URIs(),
		ExtraExtensions: []pkix.Extension{
			{Id: []int{2, 5, 29, 19}, Critical: true, Value: []byte{0x30, 0x03, 0x01, 0x01, 0xff}}, // a CA
		},
	}, v.key)
	if err != nil {
		t.Fatal(err)
	}
	v.tickets = []string{"192.0.2.1 9999999999 AAAA", newTickets().issue(nil, netip.MustParseAddr("192.0.2.1"), time.Now())}
	got, err := v.Join(t.Context(), token, "hostid", "host-2")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"127.0.0.1"}, []string{got.Certificate.IPAddresses[0].String()}); diff != "" || len(got.Certificate.IPAddresses) > 1 {
		t.Errorf("addresses %v", got.Certificate.IPAddresses)
	}
	want := []*url.URL{{Scheme: "overlayd", Opaque: "host/hostid"}}
	if diff := cmp.Diff(want, got.Certificate.URIs); diff != "" || got.Certificate.IsCA || len(got.Certificate.DNSNames) > 0 {
		t.Errorf("it is a CA: %t, for names %q, and URIs (-want +got):\n%s", got.Certificate.IsCA, got.Certificate.DNSNames, diff)
	}
}

// TestKeysRefused asks for certificates for keys of other kinds, and for one that the host has not.
func TestKeysRefused(t *testing.T) {
	t.Parallel()
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Skipf("no weak key to be had: %v", err)
	}
	curve, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for want, key := range map[string]any{"must be for a key of ECDSA P-256": weak, "ECDSA P-256": curve} {
		request, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
		if err != nil {
			t.Fatal(err)
		}
		_, err = certs.RequestedKey(request)
		says(t, err, want)
	}
	request, err := certs.NewRequest(mustKey(t))
	if err != nil {
		t.Fatal(err)
	}
	request[len(request)-1] ^= 1
	_, err = certs.RequestedKey(request)
	says(t, err, "not signed with its key")
	_, err = certs.RequestedKey([]byte("none"))
	says(t, err, "the certificate request is none")
}

package etcdstore

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/overlayd/overlayd/subnet/etcdembed"
)

// gatedEtcd serves with the certificates in certs, and lets hosts do what they may. Raw is an operator.
func gatedEtcd(t *testing.T, certs string) (s *etcdembed.Server, raw *clientv3.Client) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "etcd.sock")
	s, err := etcdembed.Start(t.Context(), etcdembed.Config{
		Dir: t.TempDir(), Listen: "127.0.0.1:0", Socket: socket, Prefix: prefix, UnsafeNoFsync: true,
		CAFile: certs + "/ca.pem", CertFile: certs + "/server.pem", KeyFile: certs + "/server-key.pem",
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	if raw, err = clientv3.New(clientv3.Config{Endpoints: []string{"unix://" + socket}, Logger: zap.NewNop()}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { raw.Close() })
	return s, raw
}

// TestHostsThroughTheGate has hosts claim all at once, keep, change and give back their leases with no more than hosts may do; one
// says why it cannot, and one is removed, says so, and does not keep etcd busy.
func TestHostsThroughTheGate(t *testing.T) {
	t.Parallel()
	certs := t.TempDir()
	var names [][3]string
	for i := range 12 {
		names = append(names, [3]string{fmt.Sprint("host", i), fmt.Sprint("h", i), fmt.Sprint("192.0.2.", i)})
	}
	writeCertificatesAt(t, certs, time.Now(), names...)
	etcd, raw := gatedEtcd(t, certs)
	put := func(key, value string) {
		t.Helper()
		if _, err := raw.Put(t.Context(), key, value); err != nil {
			t.Fatal(err)
		}
	}
	// Twelve subnets, so that hosts meet.
	put(prefix+"/config", `{"Network":"10.5.0.0/16","SubnetLen":24,"SubnetMin":"10.5.1.0","SubnetMax":"10.5.12.0","Backend":{"Type":"vxlan"}}`)
	storeAs := func(file string) *Store {
		t.Helper()
		return storeOf(t, Config{Endpoints: []string{etcd.Endpoint()}, CAFile: certs + "/ca.pem",
			CertFile: certs + "/" + file + ".pem", KeyFile: certs + "/" + file + "-key.pem"}, slog.New(slog.DiscardHandler))
	}
	var all []*host
	for _, n := range names[1:] {
		put(prefix+"/overlayd/hosts/"+n[1], "{}")
		all = append(all, join(t, storeAs(n[0]), JoinConfig{HostID: n[1], TTL: 15 * time.Second}, n[2]))
	}
	first := all[0].awaitHeld("").Own
	for _, h := range all {
		if u := h.awaitHeld(""); u.Own.Reason != "" {
			t.Errorf("%s: %s", h.cfg.HostID, u.Own.Reason)
		}
		eventually(t, "has its peers", func() bool { return len(h.peerKeys()) == len(all)-1 })
	}
	all[0].await("renews", func(u Update) bool { return u.Own.Expires.After(first.Expires) })
	all[1].Advertise(advert("192.0.2.99"))
	all[1].await("says why not", func(u Update) bool {
		return strings.Contains(u.Own.Reason, `etcd refuses to write the lease: host "host2`) && strings.Contains(u.Own.Reason, "issue it for the address")
	})
	if _, _, err := storeAs("host2").Network(t.Context()); err != nil {
		t.Error(err)
	}
	if err := storeAs("host2").SetNetwork(t.Context(), []byte(network), 0); err == nil || !strings.Contains(err.Error(), "only operators may") {
		t.Errorf("a host sets the network: %v", err)
	}
	never := join(t, storeAs("host0"), JoinConfig{HostID: "h0"}, "192.0.2.0")
	never.await("is told that it never joined", func(u Update) bool { return strings.Contains(errText(u.Err), "never joined") })
	if _, err := raw.Delete(t.Context(), prefix+"/overlayd/hosts/h3"); err != nil {
		t.Fatal(err)
	}
	all[2].await("is told that it was removed", func(u Update) bool {
		return !u.Connected && strings.Contains(errText(u.Err), "removed from the network")
	})
	put(prefix+"/overlayd/hosts/h3", "{}")
	all[2].await("is back", func(u Update) bool { return u.Connected && u.Own.State == Held })
}

// TestConnectionOutlivesCertificate has a certificate end that a connection for single requests was made with, and that was
// replaced on disk before: the request after the one that is refused is made with the new one.
func TestConnectionOutlivesCertificate(t *testing.T) {
	t.Parallel()
	certs := t.TempDir()
	writeCertificatesAt(t, certs, time.Now(), [3]string{"host", "h", "192.0.2.1"})
	etcd, raw := gatedEtcd(t, certs)
	for key, value := range map[string]string{prefix + "/config": network, prefix + "/overlayd/hosts/h": "{}"} {
		if _, err := raw.Put(t.Context(), key, value); err != nil {
			t.Fatal(err)
		}
	}
	ca, err := tls.LoadX509KeyPair(certs+"/ca.pem", certs+"/ca-key.pem")
	if err != nil {
		t.Fatal(err)
	}
	host, err := tls.LoadX509KeyPair(certs+"/host.pem", certs+"/host-key.pem")
	if err != nil {
		t.Fatal(err)
	}
	issue := func(life time.Duration) {
		t.Helper()
		c := *host.Leaf
		c.NotAfter = time.Now().Add(life)
		der, err := x509.CreateCertificate(rand.Reader, &c, ca.Leaf, host.PrivateKey.(*ecdsa.PrivateKey).Public(), ca.PrivateKey)
		if err != nil {
			t.Fatal(err)
		}
		writeFile(t, certs+"/host.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	}
	issue(2 * time.Second)
	s := storeOf(t, Config{Endpoints: []string{etcd.Endpoint()}, CAFile: certs + "/ca.pem", CertFile: certs + "/host.pem", KeyFile: certs + "/host-key.pem"},
		slog.New(slog.DiscardHandler))
	if _, _, err := s.Network(t.Context()); err != nil {
		t.Fatal(err)
	}
	issue(time.Hour)
	time.Sleep(3 * time.Second) // certificates end at whole seconds
	_, _, first := s.Network(t.Context())
	if _, _, err := s.Network(t.Context()); err != nil {
		t.Errorf("%v; before that, %v", err, first)
	}
}

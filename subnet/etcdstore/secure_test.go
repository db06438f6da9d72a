package etcdstore

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/overlayd/overlayd/subnet/etcdembed"
)

// writeCertificates writes ca.pem, server.pem, client.pem and their keys, all new, to dir.
func writeCertificates(t testing.TB, dir string) {
	t.Helper()
	writeCertificatesAt(t, dir, time.Now())
}

// writeCertificatesAt writes some that are valid from an hour before a time until an hour after it. Each host is a file's
// name, and the host id and the address that the certificate in it names.
func writeCertificatesAt(t testing.TB, dir string, at time.Time, hosts ...[3]string) {
	t.Helper()
	serial := int64(0)
	make := func(name string, signer *x509.Certificate, signerKey *ecdsa.PrivateKey, host ...string) (*x509.Certificate, *ecdsa.PrivateKey) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		serial++
		cert := &x509.Certificate{
			SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name + " in " + dir},
			NotBefore: at.Add(-time.Hour), NotAfter: at.Add(time.Hour),
			IsCA: signer == nil, BasicConstraintsValid: true,
			KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
			IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		}
		if len(host) > 0 {
			cert.URIs = []*url.URL{{Scheme: "overlayd", Opaque: "host/" + host[0]}}
			cert.IPAddresses = append(cert.IPAddresses, net.ParseIP(host[1]))
		}
		if signer == nil {
			signer, signerKey = cert, key
		}
		der, err := x509.CreateCertificate(rand.Reader, cert, signer, key.Public(), signerKey)
		if err != nil {
			t.Fatal(err)
		}
		pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		writeFile(t, filepath.Join(dir, name+".pem"), string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
		writeFile(t, filepath.Join(dir, name+"-key.pem"), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})))
		return cert, key
	}
	ca, key := make("ca", nil, nil)
	make("server", ca, key)
	make("client", ca, key)
	for _, h := range hosts {
		make(h[0], ca, key, h[1:]...)
	}
}

func writeFile(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// secureEtcd serves with the certificates in certs and wants the client's.
func secureEtcd(t *testing.T, dir, listen, certs string) *etcdembed.Server {
	t.Helper()
	s, err := etcdembed.Start(t.Context(), etcdembed.Config{
		Dir: dir, Listen: listen, UnsafeNoFsync: true,
		CAFile: certs + "/ca.pem", CertFile: certs + "/server.pem", KeyFile: certs + "/server-key.pem",
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func TestCertificatesAreReadAgain(t *testing.T) {
	t.Parallel()
	certs, dir := t.TempDir(), t.TempDir()
	writeCertificates(t, certs)
	etcd := secureEtcd(t, dir, "127.0.0.1:0", certs)
	cfg := Config{
		Endpoints: []string{etcd.Endpoint()},
		CAFile:    certs + "/ca.pem", CertFile: certs + "/client.pem", KeyFile: certs + "/client-key.pem",
	}
	s := storeOf(t, cfg, slog.New(slog.DiscardHandler))
	if err := s.SetNetwork(t.Context(), []byte(network), 0); err != nil {
		t.Fatal(err)
	}
	h := join(t, s, JoinConfig{HostID: "h1"}, "192.0.2.1")
	h.awaitHeld("")

	// Everything is signed by another CA now.
	listen := strings.TrimPrefix(etcd.Endpoint(), "https://")
	etcd.Close()
	h.await("misses etcd", func(u Update) bool { return !u.Connected })
	writeCertificates(t, certs)
	secureEtcd(t, dir, listen, certs)
	h.await("is back", func(u Update) bool { return u.Connected && u.Own.State == Held })

	cfg.CertFile, cfg.KeyFile = "", ""
	s = storeOf(t, cfg, slog.New(slog.DiscardHandler))
	if _, _, err := s.Network(t.Context()); err == nil || !strings.Contains(err.Error(), "asks for a client certificate") {
		t.Errorf("without a certificate: %v, want an error that says so", err)
	}

	foreign := t.TempDir()
	writeCertificates(t, foreign)
	cfg.CertFile, cfg.KeyFile = foreign+"/client.pem", foreign+"/client-key.pem"
	s = storeOf(t, cfg, slog.New(slog.DiscardHandler))
	if _, _, err := s.Network(t.Context()); err == nil || !strings.Contains(err.Error(), "would refuse the client certificate") {
		t.Errorf("with another CA's certificate: %v, want an error that says so", err)
	}
}

// enableAuth makes etcd ask who one is, and a user "host" with a permission for the prefix and nothing else.
func enableAuth(t testing.TB, etcd *server, password string, p clientv3.PermissionType) {
	t.Helper()
	ctx := t.Context()
	for _, step := range []func() error{
		func() error { _, err := etcd.raw.UserAdd(ctx, "root", "toor"); return err },
		func() error { _, err := etcd.raw.UserGrantRole(ctx, "root", "root"); return err },
		func() error { _, err := etcd.raw.RoleAdd(ctx, "overlay"); return err },
		func() error {
			_, err := etcd.raw.RoleGrantPermission(ctx, "overlay", prefix+"/", clientv3.GetPrefixRangeEnd(prefix+"/"), p)
			return err
		},
		func() error { _, err := etcd.raw.UserAdd(ctx, "host", password); return err },
		func() error { _, err := etcd.raw.UserGrantRole(ctx, "host", "overlay"); return err },
		func() error { _, err := etcd.raw.AuthEnable(ctx); return err },
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
}

// A host that may read but not write follows its peers and says what it lacks.
func TestReadOnlyUser(t *testing.T) {
	t.Parallel()
	etcd := startEtcd(t, "")
	etcd.put(t, prefix+"/config", network)
	keys := putPeers(t, etcd, 3)
	enableAuth(t, etcd, "secret", clientv3.PermissionType(clientv3.PermRead))
	file := filepath.Join(t.TempDir(), "password")
	writeFile(t, file, "secret")
	var log counter
	s := storeOf(t, Config{Endpoints: []string{etcd.Endpoint()}, Username: "host", PasswordFile: file}, log.logger())
	h := join(t, s, JoinConfig{HostID: "h1"}, "192.0.2.1")
	h.awaitPeers(keys...)
	u := h.await("may not write", func(u Update) bool { return strings.Contains(u.Own.Reason, "permission denied") })
	if !u.Connected || u.Own.State != Claiming {
		t.Errorf("update %+v", u)
	}
}

func TestUserAndPassword(t *testing.T) {
	t.Parallel()
	etcd := startEtcd(t, "")
	ctx := t.Context()
	const secret = "correct horse"
	enableAuth(t, etcd, secret, clientv3.PermissionType(clientv3.PermReadWrite))
	file := filepath.Join(t.TempDir(), "password")
	writeFile(t, file, secret+"\n")
	var log counter
	cfg := Config{Endpoints: []string{etcd.Endpoint()}, Username: "host", PasswordFile: file}
	s := storeOf(t, cfg, log.logger())
	if err := s.SetNetwork(ctx, []byte(network), 0); err != nil {
		t.Fatal(err)
	}
	h := join(t, s, JoinConfig{HostID: "h1", TTL: 3 * time.Second}, "192.0.2.1")
	first := h.awaitHeld("").Own
	h.await("renews", func(u Update) bool { return u.Own.Expires.After(first.Expires) })

	writeFile(t, file, "wrong "+secret)
	if err := os.Chmod(file, 0o644); err != nil {
		t.Fatal(err)
	}
	s = storeOf(t, cfg, log.logger())
	if _, _, err := s.Network(ctx); err == nil || strings.Contains(err.Error(), secret) {
		t.Errorf("with a wrong password: %v", err)
	}
	if log.count("make it 0600") != 1 || log.count(secret) != 0 {
		t.Errorf("log: %s", log.buf.String())
	}
}

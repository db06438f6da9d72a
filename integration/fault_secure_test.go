package integration

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// authority signs certificates.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	file string // with its certificate
}

func newAuthority(t *testing.T, name string) *authority {
	t.Helper()
	a := &authority{t: t, file: filepath.Join(t.TempDir(), "ca.pem")}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	a.key = newKey(t)
	der, err := x509.CreateCertificate(rand.Reader, template, template, a.key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	writePEM(t, a.file, "CERTIFICATE", der)
	return a
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// issue writes a certificate for name, good until a time, and its key to <prefix>.pem and <prefix>.key.
func (a *authority) issue(prefix, name string, until time.Time) {
	a.t.Helper()
	key := newKey(a.t)
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: until, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		IPAddresses: []net.IP{net.IPv4(172, 30, 1, etcdNumber), net.IPv4(127, 0, 0, 1)},
	}, a.cert, key.Public(), a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	writePEM(a.t, prefix+".key", "PRIVATE KEY", raw)
	writePEM(a.t, prefix+".pem", "CERTIFICATE", der)
}

func writePEM(t *testing.T, path, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

// waitStage waits until the host is not ready, and says why.
func (h *Host) waitStage(texts ...string) {
	h.t.Helper()
	s := h.waitStatus(fmt.Sprintf("says %q", texts), func(s hostStatus) bool { return !s.Ready && hasAll(s.Stage, texts) })
	h.t.Logf("stage: %s", s.Stage)
	if strings.Contains(s.Stage, "desc =") {
		h.t.Errorf("stage %q is in gRPC's words", s.Stage)
	}
}

// TestEtcdCertificates gives a host the wrong certificates and puts them right on the disk, one after the other: it
// says what is wrong each time, and needs no restart.
func TestEtcdCertificates(t *testing.T) {
	t.Parallel()
	lab := newLab(t, both)
	wire := lab.NewSegment(1)
	lab.NewEtcd(wire)
	right, wrong := newAuthority(t, "right"), newAuthority(t, "wrong")
	dir := t.TempDir()
	server, client, ca := filepath.Join(dir, "server"), filepath.Join(dir, "client"), filepath.Join(dir, "ca.pem")
	later, past := time.Now().Add(time.Hour), time.Now().Add(-time.Hour)
	right.issue(server, "etcd", later)
	right.issue(client, "host", later)
	etcd := &etcdServer{node: lab.Etcd, dir: filepath.Join(dir, "data"), args: []string{
		"--listen-client-urls", "https://[::]:2379", "--advertise-client-urls", "https://127.0.0.1:2379",
		"--cert-file", server + ".pem", "--key-file", server + ".key", "--client-cert-auth", "--trusted-ca-file", right.file},
		flags: []string{"--endpoints", "https://127.0.0.1:2379", "--cacert", right.file, "--cert", client + ".pem", "--key", client + ".key"}}
	etcd.start()
	etcd.wait()
	etcd.ctl("put", configKey, lab.Config(`{"Type":"vxlan"}`))
	lab.etcdURL = "https://172.30.1.100:2379"
	copyFile(t, ca, wrong.file)
	right.issue(client, "host", past)
	h := lab.NewHost(wire, 11)
	h.Start("--etcd-cafile", ca, "--etcd-certfile", client+".pem", "--etcd-keyfile", client+".key")
	h.waitStage("etcd at https://172.30.1.100:2379", "certificate", "unknown authority")
	copyFile(t, ca, right.file)
	h.waitStage("certificate", "expired")
	wrong.issue(client, "host", later)
	h.waitStage("would refuse the client certificate", "acceptable CA")
	measure(t, "the right certificate is on the disk: ready", 10*time.Second, func() {
		right.issue(client, "host", later)
		h.WaitReady()
	})

	// Certificates that are renewed while all is well are there when they are needed.
	right.issue(client, "host", later)
	right.issue(server, "etcd", later)
	etcd.kill()
	h.waitProblem("etcd")
	etcd.start()
	h.waitWell()
}

func copyFile(t *testing.T, to, from string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestEtcdUser has a user whose password is wrong, and whose role lacks what it needs.
func TestEtcdUser(t *testing.T) {
	t.Parallel()
	lab, wire, etcd := newFaultWire(t, `{"Type":"vxlan"}`)
	for _, args := range [][]string{
		{"user", "add", "root:secret"}, {"user", "grant-role", "root", "root"},
		{"role", "add", "host"}, {"role", "grant-permission", "host", "read", "--prefix=true", "/coreos.com/network/"},
		{"user", "add", "host:right"}, {"user", "grant-role", "host", "host"},
		{"auth", "enable"},
	} {
		etcd.ctl(args...)
	}
	etcd.flags = []string{"--user", "root:secret"}
	password := filepath.Join(t.TempDir(), "password")
	writeSecret(t, password, "wrong")
	h := lab.NewHost(wire, 11)
	h.Start("--etcd-username=host", "--etcd-password-file="+password)
	h.waitStage("etcd at http://172.30.1.100:2379", `refuses user "host" with the password in `+password)
	if log := h.Daemon.Output.String(); strings.Contains(log, "wrong") {
		t.Error("the log holds the password")
	}
	writeSecret(t, password, "right")
	h.waitStage("permission denied")
	measure(t, "the role may write: ready", 10*time.Second, func() {
		etcd.ctl("role", "grant-permission", "host", "readwrite", "--prefix=true", subnetsPrefix)
		h.WaitReady()
	})
	s := h.waitWell()
	if len(s.Problems) != 0 {
		t.Errorf("problems %q", s.Problems)
	}
}

func writeSecret(t *testing.T, path, secret string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(secret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
}

package integration

import (
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/renameio/v2"
)

// config is the host's configuration, which overlayctl writes.
func (h *Host) config() string { return filepath.Join(filepath.Dir(h.RunDir), "overlayd.yaml") }

// setUp runs overlayctl init or join, by whose configuration overlayd runs.
func (h *Host) setUp(args ...string) (string, error) {
	if f, err := os.OpenFile(h.config(), os.O_CREATE|os.O_WRONLY, 0o600); err != nil {
		return "", err
	} else if err := f.Close(); err != nil {
		return "", err
	}
	return h.Try(append([]string{"env", "OVERLAYD_STATE_DIR=" + h.State, "OVERLAYD_RUN_DIR=" + h.RunDir, "PATH=" + bin("") + ":" + os.Getenv("PATH"),
		"overlayctl", "--config", h.config(), "--timeout=10s"}, args...)...)
}

// mustSetUp is setUp for what must not fail.
func (h *Host) mustSetUp(args ...string) string {
	h.t.Helper()
	out, err := h.setUp(args...)
	if err != nil {
		h.t.Fatalf("overlayctl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func (h *Host) startSetUp() {
	h.t.Helper()
	h.Daemon = h.Spawn("overlayd on "+h.Name, nil, bin("overlayd"), "--config", h.config())
	h.WaitReady()
}

// newJoined makes a network of two hosts of both families by init and join, without systemd.
func newJoined(t *testing.T) (first, second *Host) {
	t.Helper()
	lab := newLab(t, Stack{V4: true, V6: true})
	hosts := lab.NewHosts(lab.NewSegment(1), 2)
	first, second = hosts[0], hosts[1]
	init := []string{"init", "--no-start", "--network", overlayV4 + "," + overlayV6}
	if out := first.mustSetUp(init...); !strings.Contains(out, "now start overlayd --config ") {
		t.Fatalf("init says\n%s", out)
	}
	first.startSetUp()
	join := joinLine.FindStringSubmatch(first.mustSetUp(init...))
	if join == nil {
		t.Fatal("init does not say how to join")
	}
	second.mustSetUp(append(strings.Fields(join[1]), "--no-start", "--name", "second")...)
	second.startSetUp()
	for _, h := range hosts {
		h.WaitPeers(1)
	}
	return first, second
}

// certificate is the host's own, as it is now.
func (h *Host) certificate() *x509.Certificate {
	h.t.Helper()
	cert, _ := readBundle(h.t, filepath.Join(h.State, "pki", "host.pem"))
	return cert
}

// readBundle reads a file with a certificate and its key.
func readBundle(t testing.TB, path string) (*x509.Certificate, crypto.PrivateKey) {
	t.Helper()
	pem, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(pem, pem)
	if err != nil {
		t.Fatal(err)
	}
	return pair.Leaf, pair.PrivateKey
}

// give puts a certificate for the host into its state directory, as if it had been made so long ago that so much is left.
func (h *Host) give(first *Host, life, left time.Duration) {
	h.t.Helper()
	ca, caKey := readBundle(h.t, filepath.Join(first.State, "pki", "ca.key"))
	template, key := *h.certificate(), newKey(h.t)
	template.NotBefore, template.NotAfter = time.Now().Add(left-life), time.Now().Add(left)
	der, err := x509.CreateCertificate(rand.Reader, &template, ca, key.Public(), caKey)
	if err != nil {
		h.t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		h.t.Fatal(err)
	}
	bundle := append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})...)
	if err := renameio.WriteFile(filepath.Join(h.State, "pki", "host.pem"), bundle, 0o400); err != nil {
		h.t.Fatal(err)
	}
}

// TestJoinedHostRenews gives a host of both families, that has joined, a certificate whose time has come. It gets another,
// for both its addresses, and is not restarted.
func TestJoinedHostRenews(t *testing.T) {
	t.Parallel()
	first, second := newJoined(t)
	pid := second.Daemon.Pid()
	second.give(first, 30*time.Minute, 5*time.Minute)
	eventually(t, "the certificate is renewed", func() error {
		if c := second.certificate(); time.Until(c.NotAfter) < time.Hour || len(c.IPAddresses) != 2 {
			return fmt.Errorf("it is for %v until %s", c.IPAddresses, c.NotAfter)
		}
		return nil
	})
	first.Daemon.Signal(syscall.SIGKILL) // so that the other connects again
	first.Daemon.Wait()
	first.startSetUp()
	eventually(t, "the host is let in with it", func() error {
		out, err := second.Try(bin("overlayctl"), "--config", second.config(), "leases", "list")
		if err != nil {
			return errors.New(out)
		}
		return nil
	})
	if second.Daemon.Pid() != pid || !second.Daemon.Running() {
		t.Error("overlayd was restarted")
	}
}

// TestJoinedHostCannotRenew removes a host whose certificate ends soon. It says so, and joins again.
func TestJoinedHostCannotRenew(t *testing.T) {
	t.Parallel()
	first, second := newJoined(t)
	first.mustSetUp("hosts", "remove", "second")
	second.give(first, 30*time.Minute, time.Minute)
	for _, command := range []string{"status", "doctor"} {
		eventually(t, command+" says that the certificate cannot be renewed", func() error {
			out, _ := second.setUp(command)
			if !strings.Contains(strings.Join(strings.Fields(out), " "), "cannot be renewed") {
				return errors.New(out)
			}
			return nil
		})
	}
	second.give(first, time.Minute, -time.Second) // as if it had slept
	join := joinLine.FindStringSubmatch(first.mustSetUp("tokens", "create", "--uses", "1"))[1]
	id := second.certificate()
	second.mustSetUp(append(strings.Fields(join), "--no-start", "--name", "second")...)
	second.WaitPeers(1)
	if now := second.certificate(); now.URIs[0].String() != id.URIs[0].String() {
		t.Errorf("the host was %s, and is %s", id.URIs[0], now.URIs[0])
	}
}

// TestInitExistingEtcd makes hosts of a network in an etcd that is there, by the same command on each.
func TestInitExistingEtcd(t *testing.T) {
	t.Parallel()
	lab := newLab(t, Stack{V4: true})
	wire := lab.NewSegment(1)
	lab.NewEtcd(wire)
	lab.StartEtcd()
	hosts := lab.NewHosts(wire, 2)
	at := []string{"init", "--no-start", "--etcd-endpoints", lab.endpoint()}
	if out, err := hosts[0].setUp(at...); err == nil || !strings.Contains(out, "or give --network") {
		t.Errorf("without a network: %v, %s", err, out)
	}
	for i, h := range hosts {
		args := at
		if i == 0 {
			args = append(args, "--network", overlayV4)
		}
		h.mustSetUp(args...)
		h.startSetUp()
		if out := h.mustSetUp(at...); !strings.Contains(out, "there is "+h.config()) || !strings.Contains(out, "this host is serving 10.5.") {
			t.Errorf("again, it says\n%s", out)
		}
		if _, err := os.Stat(filepath.Join(h.State, "pki")); err == nil {
			t.Error("certificates were made")
		}
	}
	for _, h := range hosts {
		h.WaitPeers(1)
	}
}

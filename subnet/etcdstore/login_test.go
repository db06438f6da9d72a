package etcdstore

import (
	"context"
	"log/slog"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
)

// logins counts how often etcd is asked to compare a password.
type logins struct{ atomic.Int64 }

func (l *logins) dialOption() grpc.DialOption {
	return grpc.WithChainUnaryInterceptor(
		func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			if strings.HasSuffix(method, "/Authenticate") {
				l.Add(1)
			}
			return invoke(ctx, method, req, reply, cc, opts...)
		})
}

// user is the network as user "host" reaches it, whose password is in file.
func (l *logins) user(t testing.TB, endpoint, file string) *Store {
	s := storeOf(t, Config{Endpoints: []string{endpoint}, Username: "host", PasswordFile: file}, slog.New(slog.DiscardHandler))
	s.client.dialOptions = []grpc.DialOption{l.dialOption()}
	return s
}

func (l *logins) expect(t testing.TB, want int64) {
	t.Helper()
	if got := l.Load(); got != want {
		t.Errorf("%d logins, want %d", got, want)
	}
}

// locked makes etcd ask who one is, and returns the file with the password.
func locked(t testing.TB, etcd *server) string {
	t.Helper()
	etcd.put(t, prefix+"/config", network)
	enableAuth(t, etcd, "secret", clientv3.PermissionType(clientv3.PermReadWrite))
	file := filepath.Join(t.TempDir(), "password")
	writeFile(t, file, "secret")
	return file
}

// root is a client that may do everything.
func root(t testing.TB, endpoint string) *clientv3.Client {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, Username: "root", Password: "toor", Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// A start, a watch, renewals and another connection cost etcd one password, and its restart, which forgets all tokens,
// one more.
func TestOneLoginForAll(t *testing.T) {
	t.Parallel()
	etcd := startEtcd(t, "")
	file := locked(t, etcd)
	px := startProxy(t, etcd.addr())
	var l logins
	s := l.user(t, px.endpoint(), file)
	h := join(t, s, JoinConfig{HostID: "h1", TTL: time.Second}, "192.0.2.1")
	renews := func() {
		t.Helper()
		first := h.awaitHeld("").Own
		h.await("renews 5 times", func(u Update) bool { return u.Own.Expires.After(first.Expires.Add(1700 * time.Millisecond)) })
		if _, _, err := s.Network(t.Context()); err != nil {
			t.Error(err)
		}
	}
	renews()
	before := px.used()
	px.set(refuse)
	h.await("has lost etcd", func(u Update) bool { return !u.Connected })
	px.set(pass)
	renews()
	if px.used() == before {
		t.Error("it is the same connection")
	}
	l.expect(t, 1)

	etcd.Close()
	h.await("misses etcd", func(u Update) bool { return !u.Connected })
	startEtcdIn(t, etcd.dir, etcd.addr())
	renews()
	l.expect(t, 2)
}

// A watch that etcd refuses because of the token is not refused again.
func TestWatchWithLostToken(t *testing.T) {
	t.Parallel()
	etcd := startEtcd(t, "")
	file := locked(t, etcd)
	var l logins
	s := l.user(t, etcd.Endpoint(), file)
	if _, _, err := s.Network(t.Context()); err != nil {
		t.Fatal(err)
	}
	etcd.Close()
	startEtcdIn(t, etcd.dir, etcd.addr())
	if _, err := root(t, etcd.Endpoint()).Put(t.Context(), subnets+peerKey(1), peerValue(1)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "watches", func() bool {
		for listing, err := range s.Follow(t.Context()) {
			return err == nil && len(listing.Records) == 1
		}
		return false
	})
	l.expect(t, 2)
}

// A JSON web token ends when somebody is granted a role, and is replaced without a word.
func TestRolesChange(t *testing.T) {
	t.Parallel()
	keys := t.TempDir()
	writeCertificates(t, keys)
	etcd := startDebianEtcd(t, "--auth-token", "jwt,sign-method=ES256,ttl=1h,priv-key="+keys+"/client-key.pem,pub-key="+keys+"/client.pem")
	file := locked(t, etcd.server)
	var l logins
	s := l.user(t, etcd.endpoint, file)
	var log counter
	s.log = log.logger()
	h := join(t, s, JoinConfig{HostID: "h1", TTL: time.Second}, "192.0.2.1")
	h.awaitHeld("")
	admin := root(t, etcd.endpoint)
	for logged := int64(1); logged < 4; logged++ {
		l.expect(t, logged)
		if _, err := admin.RoleGrantPermission(t.Context(), "overlay", "/another", "", clientv3.PermissionType(clientv3.PermRead)); err != nil {
			t.Fatal(err)
		}
		eventually(t, "logs in", func() bool { _, _, err := s.Network(t.Context()); return err == nil && l.Load() > logged })
	}
	h.await("is there", func(u Update) bool { return u.Connected && u.Own.State == Held })
	if n := log.count("WARN"); n != 0 {
		t.Errorf("log: %s", log.buf.String())
	}
}

// Who has a password for an etcd that asks for none uses it when etcd begins to.
func TestAuthIsEnabledLater(t *testing.T) {
	t.Parallel()
	etcd := startEtcd(t, "")
	etcd.put(t, prefix+"/config", network)
	file := filepath.Join(t.TempDir(), "password")
	writeFile(t, file, "secret")
	var l logins
	s := l.user(t, etcd.Endpoint(), file)
	h := join(t, s, JoinConfig{HostID: "h1", TTL: time.Second}, "192.0.2.1")
	h.awaitHeld("")
	l.expect(t, 1)
	enableAuth(t, etcd, "secret", clientv3.PermissionType(clientv3.PermReadWrite))
	eventually(t, "logs in", func() bool { _, _, err := s.Network(t.Context()); return err == nil && l.Load() == 2 })
	now := time.Now()
	h.await("renews", func(u Update) bool { return u.Connected && u.Own.Expires.After(now.Add(2*time.Second)) })
	l.expect(t, 2)
}

// A certificate whose common name is a user's needs no password.
func TestCertificateIsTheUser(t *testing.T) {
	t.Parallel()
	certs := t.TempDir()
	writeCertificates(t, certs)
	etcd := secureEtcd(t, t.TempDir(), "127.0.0.1:0", certs)
	cfg := Config{
		Endpoints: []string{etcd.Endpoint()},
		CAFile:    certs + "/ca.pem", CertFile: certs + "/client.pem", KeyFile: certs + "/client-key.pem",
	}
	s := storeOf(t, cfg, slog.New(slog.DiscardHandler))
	var l logins
	s.client.dialOptions = []grpc.DialOption{l.dialOption()}
	admin, err := s.client.connection(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	name := "client in " + certs
	if _, err := admin.UserAddWithOptions(t.Context(), name, "", &clientv3.UserAddOptions{NoPassword: true}); err != nil {
		t.Fatal(err)
	}
	enableAuth(t, &server{raw: admin}, "secret", clientv3.PermissionType(clientv3.PermReadWrite))
	if err := s.SetNetwork(t.Context(), []byte(network), 0); err == nil {
		t.Error("may write without a role")
	}
	asRoot, err := admin.Authenticate(t.Context(), "root", "toor")
	if err != nil {
		t.Fatal(err)
	}
	// Without that the name of the certificate would count.
	ctx := (&token{value: asRoot.Token}).show(t.Context())
	if _, err := admin.UserGrantRole(ctx, name, "overlay"); err != nil {
		t.Fatal(err)
	}
	l.expect(t, 1)
	if err := s.SetNetwork(t.Context(), []byte(network), 0); err != nil {
		t.Fatal(err)
	}
	h := join(t, s, JoinConfig{HostID: "h1", TTL: time.Second}, "192.0.2.1")
	first := h.awaitHeld("").Own
	h.await("renews", func(u Update) bool { return u.Own.Expires.After(first.Expires) })
	l.expect(t, 1) // root's
}

// A wrong password is said at once and asked about rarely, until there is another in the file.
func TestPasswordIsReplaced(t *testing.T) {
	t.Parallel()
	etcd := startEtcd(t, "")
	file := locked(t, etcd)
	writeFile(t, file, "wrong")
	var l logins
	s := l.user(t, etcd.Endpoint(), file)
	s.client.login.wait = backoff(maxLoginBackoff) // so that the next attempt is in a minute
	h := join(t, s, JoinConfig{HostID: "h1"}, "192.0.2.1")
	for range 3 {
		if _, _, err := s.Network(t.Context()); err == nil || !strings.Contains(err.Error(), file) {
			t.Errorf("with a wrong password: %v", err)
		}
	}
	h.await("says so", func(u Update) bool { return u.Err != nil && strings.Contains(u.Err.Error(), `refuses user "host"`) })
	l.expect(t, 1)
	writeFile(t, file, "secret")
	h.awaitHeld("")
	l.expect(t, 2)

	// Another password ends the tokens for the old one.
	writeFile(t, file, "new secret")
	if _, err := root(t, etcd.Endpoint()).UserChangePassword(t.Context(), "host", "new secret"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Network(t.Context()); err != nil {
		t.Error(err)
	}
	l.expect(t, 3)
}

// A login at an endpoint that is none any more is not waited for.
func TestLoginAtRetiredEndpoint(t *testing.T) {
	t.Parallel()
	etcd := startEtcd(t, "")
	file := locked(t, etcd)
	px := startProxy(t, etcd.addr())
	px.set(swallow)
	var l logins
	s := l.user(t, px.endpoint(), file)
	h := join(t, s, JoinConfig{HostID: "h1"}, "192.0.2.1")
	eventually(t, "tries", func() bool { return l.Load() > 0 })
	if err := s.client.SetEndpoints([]string{etcd.Endpoint()}); err != nil {
		t.Fatal(err)
	}
	h.awaitHeld("")
	l.expect(t, 2)
}

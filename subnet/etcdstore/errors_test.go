package etcdstore

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// What an operator reads when etcd cannot be used, at the first line that it is worth something.
func TestErrorsArePlain(t *testing.T) {
	t.Parallel()
	certs, foreign := t.TempDir(), t.TempDir()
	writeCertificates(t, certs)
	writeCertificates(t, foreign)
	secure := secureEtcd(t, t.TempDir(), "127.0.0.1:0", certs).Endpoint()
	plain := startEtcd(t, "")
	locked := startEtcd(t, "")
	enableAuth(t, locked, "secret", clientv3.PermissionType(clientv3.PermRead))
	password := filepath.Join(t.TempDir(), "password")
	writeFile(t, password, "wrong")
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { silent.Close() })
	ca, cert, key := certs+"/ca.pem", certs+"/client.pem", certs+"/client-key.pem"
	for name, tc := range map[string]struct {
		cfg  Config
		want string // after "etcd at <endpoints>"
	}{
		"refused":          {Config{Endpoints: []string{"http://127.0.0.1:1"}}, " cannot be reached: connection refused"},
		"refused twice":    {Config{Endpoints: []string{"http://127.0.0.1:1", "http://127.0.0.1:2"}}, " cannot be reached: connection refused"},
		"no socket":        {Config{Endpoints: []string{"unix:///nowhere/etcd.sock"}}, " cannot be reached: no such file or directory"},
		"no such name":     {Config{Endpoints: []string{"http://etcd.invalid:2379"}}, " cannot be reached: DNS does not "},
		"silent":           {Config{Endpoints: []string{"http://" + silent.Addr().String()}}, " does not answer"},
		"http to https":    {Config{Endpoints: []string{strings.Replace(secure, "https", "http", 1)}}, " cannot be reached: it does not speak HTTP/2 without TLS: it may want https"},
		"https to http":    {Config{Endpoints: []string{"https://" + plain.addr()}}, " cannot be reached: it closed the connection during the TLS handshake: it may speak http only"},
		"unknown CA":       {Config{Endpoints: []string{secure}, CAFile: foreign + "/ca.pem"}, " cannot be reached: tls: failed to verify certificate: x509: certificate signed by unknown authority"},
		"no certificate":   {Config{Endpoints: []string{secure}, CAFile: ca}, " cannot be reached: etcd asks for a client certificate, and none is configured"},
		"another name":     {Config{Endpoints: []string{strings.Replace(secure, "127.0.0.1", "localhost", 1)}, CAFile: ca, CertFile: cert, KeyFile: key}, " cannot be reached: tls: failed to verify certificate: x509: "},
		"no user":          {Config{Endpoints: []string{locked.Endpoint()}}, " asks for a username and a password, and none is configured"},
		"wrong password":   {Config{Endpoints: []string{locked.Endpoint()}, Username: "host", PasswordFile: password}, ` refuses user "host" with the password in ` + password + ": correct the one or the other"},
		"user but no etcd": {Config{Endpoints: []string{"http://127.0.0.1:1"}, Username: "host", PasswordFile: password}, " cannot be reached: connection refused"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := storeOf(t, tc.cfg, slog.New(slog.DiscardHandler))
			within := time.Minute // a password is compared as fast as the machine can
			if name == "silent" {
				within = 2 * time.Second
			}
			ctx, cancel := context.WithTimeout(t.Context(), within)
			defer cancel()
			_, _, err := s.Network(ctx)
			want := "etcd at " + strings.Join(slices.Sorted(slices.Values(s.client.current().urls())), ", ") + tc.want
			if err == nil || !strings.HasPrefix(err.Error(), want) {
				t.Errorf("got  %v\nwant %s", err, want)
			}
		})
	}
}

// The words are for people; programs look at what is within.
func TestErrorsAreKept(t *testing.T) {
	t.Parallel()
	for _, want := range []error{context.DeadlineExceeded, context.Canceled, rpctypes.ErrNoLeader, rpctypes.ErrNoSpace, net.ErrClosed} {
		if got := describe(want, "http://192.0.2.1:2379"); !errors.Is(got, want) {
			t.Errorf("%q is not %q", got, want)
		}
	}
	if err := describe(nil); err != nil {
		t.Errorf("of no error: %v", err)
	}
}

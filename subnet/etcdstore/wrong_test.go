package etcdstore

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/overlayd/overlayd/subnet/etcdembed"
)

// TestWrongEndpoints has an operator name what is no etcd, or what this host cannot trust: a line says which, and what to do.
func TestWrongEndpoints(t *testing.T) {
	t.Parallel()
	certs, foreign := t.TempDir(), t.TempDir()
	writeCertificates(t, certs)
	writeCertificates(t, foreign)
	web := func(secure bool, set func(*http.Protocols)) string {
		s := httptest.NewUnstartedServer(http.NotFoundHandler())
		s.Config.Protocols = new(http.Protocols)
		set(s.Config.Protocols)
		s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
		if secure {
			cert, err := tls.LoadX509KeyPair(certs+"/server.pem", certs+"/server-key.pem")
			if err != nil {
				t.Fatal(err)
			}
			s.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
			s.EnableHTTP2 = s.Config.Protocols.HTTP2()
			s.StartTLS()
		} else {
			s.Start()
		}
		t.Cleanup(s.Close)
		return s.URL
	}
	old := func(p *http.Protocols) { p.SetHTTP1(true) }
	plain, secure := startEtcd(t, ""), secureEtcd(t, t.TempDir(), "127.0.0.1:0", certs).Endpoint()
	as := func(scheme, url string) string {
		_, address, _ := strings.Cut(url, "://")
		return scheme + "://" + address
	}
	expired := t.TempDir()
	writeCertificatesAt(t, expired, time.Now().Add(-2*time.Hour))
	early := t.TempDir()
	writeCertificatesAt(t, early, time.Now().Add(2*time.Hour))
	for name, c := range map[string]struct{ endpoint, ca, want string }{
		"web server":                 {web(false, old), "", "it is a web server, or another that speaks HTTP/1 only: name etcd's client port"},
		"web server, HTTP/2":         {web(false, func(p *http.Protocols) { p.SetUnencryptedHTTP2(true) }), "", "it is a web server (HTTP status 404): name etcd's client port"},
		"web server, TLS":            {web(true, old), certs, "it speaks TLS, but not HTTP/2 as etcd does: name etcd's client port"},
		"web server, TLS, HTTP/2":    {web(true, func(p *http.Protocols) { p.SetHTTP2(true) }), certs, "it is a web server (HTTP status 404): name etcd's client port"},
		"http to a TLS web server":   {as("http", web(true, old)), "", "it does not speak HTTP/2 without TLS: it may want https"},
		"https to a web server":      {as("https", web(false, old)), certs, "it does not speak TLS: it may speak http only"},
		"http to etcd's https":       {as("http", secure), "", "it does not speak HTTP/2 without TLS: it may want https"},
		"https to etcd's http":       {as("https", plain.Endpoint()), certs, "it closed the connection during the TLS handshake: it may speak http only"},
		"http to openssl's https":    {as("http", speaking(t, "\x15\x03\x03\x00\x02\x02\x46")), "", "it does not speak HTTP/2 without TLS: it may want https"},
		"ssh":                        {speaking(t, "SSH-2.0-OpenSSH_9.2p1\r\n"), "", "it does not speak HTTP/2 without TLS: it may want https"},
		"https to ssh":               {as("https", speaking(t, "SSH-2.0-OpenSSH_9.2p1\r\n")), certs, "it does not speak TLS: it may speak http only"},
		"name that DNS has not":      {"http://etcd.invalid:2379", "", "DNS does not"},
		"port of nobody":             {"http://127.0.0.1:1", "", "connection refused: does etcd run there, and listen on this address?"},
		"certificate has ended":      {tlsEtcd(t, expired), expired, "its certificate has ended at "},
		"certificate does not begin": {tlsEtcd(t, early), early, "its certificate begins to be valid at "},
		"certificate of another CA":  {secure, foreign, "tls: failed to verify certificate: x509: certificate signed by unknown authority: etcd-cafile must be of the CA that signed etcd's"},
		"certificate of another name": {strings.Replace(secure, "127.0.0.1", "localhost", 1), certs,
			"tls: failed to verify certificate: x509: certificate is not valid for any names, but wanted to match localhost: name an endpoint as etcd's certificate does"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := Config{Endpoints: []string{c.endpoint}}
			if c.ca != "" {
				cfg.CAFile = c.ca + "/ca.pem"
			}
			s := storeOf(t, cfg, slog.New(slog.DiscardHandler))
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			_, _, err := s.Network(ctx)
			if want := "etcd at " + c.endpoint + " cannot be reached: " + c.want; err == nil || !strings.HasPrefix(err.Error(), want) || strings.ContainsAny(err.Error(), "\n\x15") {
				t.Errorf("got  %v\nwant %s", err, want)
			}
			h := join(t, s, JoinConfig{HostID: "h1"}, "192.0.2.1")
			u := h.await("says why etcd is away", func(u Update) bool { return u.Err != nil })
			if !strings.Contains(u.Err.Error(), c.want) {
				t.Errorf("a host says %v, want %q", u.Err, c.want)
			}
		})
	}
}

// speaking is the URL of a server that says something to whoever connects.
func speaking(t *testing.T, text string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Write([]byte(text))
			go func() {
				_, _ = conn.Read(make([]byte, 1024)) // else it would be reset
				conn.Close()
			}()
		}
	}()
	return "http://" + l.Addr().String()
}

// tlsEtcd serves with the certificates in certs and wants none.
func tlsEtcd(t *testing.T, certs string) string {
	t.Helper()
	s, err := etcdembed.Start(t.Context(), etcdembed.Config{
		Dir: t.TempDir(), Listen: "127.0.0.1:0", UnsafeNoFsync: true,
		CertFile: certs + "/server.pem", KeyFile: certs + "/server-key.pem",
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s.Endpoint()
}

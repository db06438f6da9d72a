package enrol

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/overlayd/overlayd/cmd/internal/certs"
	"github.com/overlayd/overlayd/subnet/who"
)

// impostor serves TLS with a chain, and keeps whatever a client says after the handshake.
func impostor(t *testing.T, bundle []byte, chain ...[]byte) (addr string, heard func() string) {
	t.Helper()
	pair, err := tls.X509KeyPair(bundle, bundle)
	if err != nil {
		t.Fatal(err)
	}
	pair.Certificate = append(pair.Certificate[:1], chain...)
	l, err := net.Listen("tcp", "127.0.0.9:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	var mu sync.Mutex
	var said bytes.Buffer
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				server := tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12})
				data, _ := io.ReadAll(io.LimitReader(server, 4096))
				mu.Lock()
				said.Write(data)
				mu.Unlock()
			}()
		}
	}()
	return l.Addr().String(), func() string { mu.Lock(); defer mu.Unlock(); return said.String() }
}

// TestNoSecretForImpostors dials servers that are not the network's. None of them hears a byte of the token.
func TestNoSecretForImpostors(t *testing.T) {
	t.Parallel()
	m := newMember(t, nil)
	token := m.token(time.Hour, 0)
	ca := m.authority.Certificate().Raw
	foreign, err := certs.NewAuthority(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	name := func(w who.Who) who.Who {
		w.Name, w.Host = "first", "firstid"
		return w
	}
	good := name(who.Who{Member: true, IPs: []netip.Addr{loopback}})
	theirs, err := foreign.Issue(good, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	at := func(when time.Time) []byte {
		bundle, err := m.authority.Issue(good, when, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		return bundle
	}
	for what, c := range map[string]struct {
		bundle []byte
		chain  [][]byte
		want   string
	}{
		"another CA":                      {theirs, [][]byte{foreign.Certificate().Raw}, "another CA has signed its certificate, or somebody is in between; nothing was sent"},
		"another CA, and this one beside": {theirs, [][]byte{ca}, "another CA has signed"},
		"this CA is not shown":            {m.bundle(good, time.Hour), nil, "another CA has signed"},
		"a host that is no member":        {m.bundle(name(who.Who{IPs: good.IPs}), time.Hour), [][]byte{ca}, "is a host's that runs no etcd"},
		"a member at another address":     {m.bundle(name(who.Who{Member: true}), time.Hour), [][]byte{ca}, "its certificate is not for 127.0.0.9: name it by one of first, localhost"},
		"ended":                           {at(time.Now().Add(-3 * time.Hour)), [][]byte{ca}, " ahead, or overlayd has not run there for long"},
		"not begun":                       {at(time.Now().Add(3 * time.Hour)), [][]byte{ca}, "this host's clock is at least "},
	} {
		t.Run(what, func(t *testing.T) {
			addr, heard := impostor(t, c.bundle, c.chain...)
			_, err := join(t, Client{Addr: addr, CA: token.CA}, token, "hostid", "host-2")
			says(t, err, c.want)
			if heard() != "" {
				t.Errorf("it was told %q", heard())
			}
		})
	}
}

// TestGuessing shows wrong secrets from one address until it is refused without being looked at, which is counted. Another
// address joins all the while.
func TestGuessing(t *testing.T) {
	t.Parallel()
	m := newMember(t, nil)
	good := m.token(time.Hour, 0)
	guess := good
	other := netip.MustParseAddr("127.0.0.7")
	q := hello{Key: make([]byte, 32)}
	var last error
	var group sync.WaitGroup
	for range guesses {
		group.Go(func() {
			g := guess
			g.Secret = NewToken(g.CA).Secret
			q := q
			q.Token = g.shown()
			_, _, err := m.client(nil).greet(t.Context(), netip.Addr{}, q)
			says(t, err, "the token is wrong")
		})
	}
	group.Wait()
	q.Token = good.shown()
	_, _, last = m.client(nil).greet(t.Context(), netip.Addr{}, q)
	says(t, last, "too many wrong tokens from 127.0.0.1")
	if _, _, err := m.client(nil).greet(t.Context(), other, q); err != nil {
		t.Errorf("from another address: %v", err)
	}
	if n := m.counted("wrong secret"); n != guesses {
		t.Errorf("%v wrong secrets were counted, of %d", n, guesses)
	}
	if n := m.counted("too many wrong secrets"); n != 1 {
		t.Errorf("%v requests were counted as too many", n)
	}
}

// TestGuardForgets guesses from more addresses than are remembered.
func TestGuardForgets(t *testing.T) {
	t.Parallel()
	g := newGuard()
	ended, cancel := context.WithCancel(t.Context())
	cancel() // nobody waits
	from := netip.MustParseAddr("2001:db8::1")
	for range guesses {
		g.wrong(ended, from)
	}
	if g.allows(netip.MustParseAddr("2001:db8::2")) {
		t.Error("a neighbour of the same /64 may guess on")
	}
	if !g.allows(netip.MustParseAddr("2001:db8:0:1::1")) {
		t.Error("another network may not try")
	}
	for i := range 2 * maxAddresses {
		g.wrong(ended, netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}))
	}
	if n := len(g.by); n > maxAddresses {
		t.Errorf("%d addresses are remembered", n)
	}
}

// TestFloods sends what is too large, too slow, too much and no request, and then joins.
func TestFloods(t *testing.T) {
	t.Parallel()
	m := newMember(t, nil)
	token := m.token(time.Hour, 0)
	client := func() *tls.Conn {
		conn, err := tls.Dial("tcp", m.server.Addr().String(), &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	for _, c := range []struct{ name, request, want string }{
		{"a huge body", "POST /v1/hello HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n" + `{"key":"` + strings.Repeat("A", 999990), "400 Bad Request"},
		{"a huge header", "POST /v1/hello HTTP/1.1\r\nHost: " + strings.Repeat("x", 100000), "431 "},
		{"no JSON", "POST /v1/join HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nnone", "400 Bad Request"},
		{"more keys", "POST /v1/hello HTTP/1.1\r\nHost: x\r\nContent-Length: 13\r\n\r\n{\"operator\":1", "400 Bad Request"},
		{"two objects", "POST /v1/hello HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n{} {}", "400 Bad Request"},
		{"another path", "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", "404 "},
		{"another method", "DELETE /v1/join HTTP/1.1\r\nHost: x\r\n\r\n", "405 "},
	} {
		conn := client()
		_, _ = io.WriteString(conn, c.request) // it may be cut off
		line, err := bufio.NewReader(conn).ReadString('\n')
		if err != nil || !strings.Contains(line, c.want) {
			t.Errorf("%s: got %q, %v, want %q", c.name, line, err, c.want)
		}
	}
	// Connections that say nothing, as many as there may be of an address, and more.
	var open []net.Conn
	for range 2 * maxConnsPerAddress {
		conn, err := net.Dial("tcp", m.server.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, conn)
	}
	defer func() {
		for _, conn := range open {
			conn.Close()
		}
	}()
	closed := 0
	for _, conn := range open {
		_ = conn.SetReadDeadline(time.Now().Add(200 * time.Millisecond / maxConnsPerAddress))
		if _, err := conn.Read(make([]byte, 1)); errors.Is(err, io.EOF) {
			closed++
		}
	}
	if closed < maxConnsPerAddress {
		t.Errorf("%d of %d idle connections of one address were closed", closed, len(open))
	}
	from := netip.MustParseAddr("127.0.0.8")
	if _, _, err := m.client(nil).greet(t.Context(), from, hello{Token: token.shown(), Key: make([]byte, 32)}); err != nil {
		t.Errorf("from another address: %v", err)
	}
}

// TestSlowRequest is cut off in the middle of a request that does not end.
func TestSlowRequest(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("it takes as long as a request may")
	}
	m := newMember(t, nil)
	begin := time.Now()
	silent, err := net.Dial("tcp", m.server.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	slow, err := tls.Dial("tcp", m.server.Addr().String(), &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	fmt.Fprint(slow, "POST /v1/hello HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{")
	for name, conn := range map[string]net.Conn{"says nothing": silent, "does not end": slow} {
		_ = conn.SetReadDeadline(time.Now().Add(3 * requestTime))
		if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("who %s is still connected after %s", name, time.Since(begin))
		}
	}
}

// TestGuessesDoNotDelay guesses from many addresses, more than are answered in seconds. A host with a token joins before.
func TestGuessesDoNotDelay(t *testing.T) {
	t.Parallel()
	m := newMember(t, nil)
	token := m.token(time.Hour, 0)
	request, err := certs.NewRequest(mustKey(t))
	if err != nil {
		t.Fatal(err)
	}
	const wrong = 40
	ctx, stop := context.WithCancel(t.Context())
	answered := make(chan error, wrong)
	for i := range wrong {
		go func() {
			q := joinRequest{Token: credential{token.ID, NewToken(token.CA).Secret}, Host: "mallory", Name: "mallory", Request: request}
			_, err := m.client(nil).post(ctx, netip.AddrFrom4([4]byte{127, 0, 1, byte(i + 1)}), "/v1/join", q, new(issued))
			answered <- err
		}()
	}
	for range allGuesses { // now the others wait
		says(t, <-answered, "the token is wrong")
	}
	if _, err := join(t, m.client(nil), token, "hostid", "host-2"); err != nil {
		t.Error(err)
	}
	if n := len(answered); n == wrong-allGuesses {
		t.Errorf("all %d guesses were answered before a host could join", n)
	}
	stop()
	for range wrong - allGuesses {
		<-answered
	}
}

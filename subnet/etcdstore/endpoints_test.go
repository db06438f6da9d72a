package etcdstore

import (
	"fmt"
	"net"
	"strings"
	"testing"
	"time"
)

func TestSetEndpoints(t *testing.T) {
	t.Parallel()
	etcd := startEtcd(t, "")
	etcd.put(t, prefix+"/config", network)
	dead := "http://127.0.0.1:1"
	s := openStore(t, dead)
	h := join(t, s, JoinConfig{HostID: "h1"}, "192.0.2.1")
	h.await("cannot reach etcd", func(u Update) bool { return u.Err != nil })

	if err := s.client.SetEndpoints([]string{"ftp://x"}); err == nil || !strings.Contains(err.Error(), `"ftp://x"`) {
		t.Errorf("SetEndpoints() of what is no endpoint = %v", err)
	}
	if err := s.client.SetEndpoints(nil); err == nil {
		t.Error("SetEndpoints() of none succeeded")
	}
	if got := s.client.current().urls(); len(got) != 1 || got[0] != dead {
		t.Errorf("endpoints are %q after a refusal", got)
	}
	if err := s.client.SetEndpoints([]string{etcd.Endpoint()}); err != nil {
		t.Fatal(err)
	}
	h.awaitHeld("")
	if _, _, err := s.Network(t.Context()); err != nil {
		t.Errorf("a single request after the move: %v", err)
	}

	// Away from an endpoint that works, and back: the lease stays, and nobody lists anew.
	moved := s.client.current()[0].retired
	if err := s.client.SetEndpoints([]string{dead}); err != nil {
		t.Fatal(err)
	}
	<-moved.Done()
	h.await("has lost etcd", func(u Update) bool { return !u.Connected })
	if err := s.client.SetEndpoints([]string{etcd.Endpoint()}); err != nil {
		t.Fatal(err)
	}
	h.await("is back", func(u Update) bool { return u.Connected && u.Own.State == Held })
}

// Who follows an endpoint that stays is not disturbed, who follows one that goes moves without a word of trouble.
func TestSetEndpointsDisturbsNobody(t *testing.T) {
	t.Parallel()
	etcd := startEtcd(t, "")
	etcd.put(t, prefix+"/config", network)
	a, b := startProxy(t, etcd.addr()), startProxy(t, etcd.addr())
	var log counter
	s := openStore(t, a.endpoint())
	s.log = log.logger()
	h := join(t, s, JoinConfig{HostID: "h1"}, "192.0.2.1")
	h.awaitHeld("")
	opened := a.used()
	for _, list := range [][]string{{b.endpoint(), a.endpoint()}, {a.endpoint(), a.endpoint()}, {b.endpoint()}} {
		if a.used() != opened || b.used() != 0 {
			t.Errorf("connected again with %s still there", a.endpoint())
		}
		if err := s.client.SetEndpoints(list); err != nil {
			t.Fatal(err)
		}
		time.Sleep(50 * time.Millisecond) // for what must not happen
	}
	eventually(t, "follows at the other endpoint", func() bool { return b.used() > 0 })
	etcd.put(t, subnets+peerKey(1), peerValue(1))
	h.awaitPeers(peerKey(1))
	if n := log.count("does not answer"); n != 0 {
		t.Errorf("the move is told as %d failures", n)
	}
}

// A name is where it led last, an address where it says; of a socket, or a name that was not asked for yet, there is none.
func TestAddrs(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	name := strings.Replace(l.Addr().String(), "127.0.0.1", "localhost", 1)
	s := openStore(t, "https://[2001:db8::7]:2379", "http://"+name, "unix:///run/etcd.sock", "http://192.0.2.7:2379", "http://192.0.2.7:2479")
	want := func(addrs string) {
		t.Helper()
		if got := fmt.Sprint(s.Addrs()); got != addrs {
			t.Errorf("etcd is at %s, want %s", got, addrs)
		}
	}
	want("[192.0.2.7 2001:db8::7]")
	conn, err := s.client.connect(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	want("[127.0.0.1 192.0.2.7 2001:db8::7]")
	l.Close()
	if _, err := s.client.connect(t.Context(), name); err == nil {
		t.Fatal("connected to nobody")
	}
	want("[127.0.0.1 192.0.2.7 2001:db8::7]")
	if err := s.client.SetEndpoints([]string{"http://192.0.2.8:2379"}); err != nil {
		t.Fatal(err)
	}
	want("[192.0.2.8]")
}

package etcdstore

import (
	"strings"
	"testing"
)

func TestSetEndpoints(t *testing.T) {
	t.Parallel()
	etcd := startEtcd(t, "")
	etcd.put(t, prefix+"/config", network)
	dead := "http://127.0.0.1:1"
	s := openStore(t, dead)
	h := join(t, s, JoinConfig{HostID: "h1"}, "192.0.2.1")
	h.await("cannot reach etcd", func(u Update) bool { return u.Err != nil })

	if err := s.SetEndpoints([]string{"ftp://x"}); err == nil || !strings.Contains(err.Error(), `"ftp://x"`) {
		t.Errorf("SetEndpoints() of what is no endpoint = %v", err)
	}
	if err := s.SetEndpoints(nil); err == nil {
		t.Error("SetEndpoints() of none succeeded")
	}
	if got := s.current().list; len(got) != 1 || got[0] != dead {
		t.Errorf("endpoints are %q after a refusal", got)
	}
	if err := s.SetEndpoints([]string{etcd.Endpoint()}); err != nil {
		t.Fatal(err)
	}
	h.awaitHeld("")
	if _, _, err := s.Network(t.Context()); err != nil {
		t.Errorf("a single request after the move: %v", err)
	}

	// Away from an endpoint that works, and back: the lease stays, and nobody lists anew.
	moved := s.current().retired
	if err := s.SetEndpoints([]string{dead}); err != nil {
		t.Fatal(err)
	}
	<-moved.Done()
	h.await("has lost etcd", func(u Update) bool { return !u.Connected })
	if err := s.SetEndpoints([]string{etcd.Endpoint()}); err != nil {
		t.Fatal(err)
	}
	h.await("is back", func(u Update) bool { return u.Connected && u.Own.State == Held })
}

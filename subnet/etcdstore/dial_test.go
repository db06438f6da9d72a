package etcdstore

import (
	"net"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// A host behind a cable that was cut is noticed by the kernel within 10 s.
func TestConnectionIsProbed(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := connect(t.Context(), l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	raw, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	option := func(name int) (value int) {
		if err := raw.Control(func(fd uintptr) { value, _ = syscall.GetsockoptInt(int(fd), syscall.IPPROTO_TCP, name) }); err != nil {
			t.Fatal(err)
		}
		return value
	}
	after := time.Duration(option(syscall.TCP_KEEPIDLE)+option(syscall.TCP_KEEPINTVL)*option(syscall.TCP_KEEPCNT)) * time.Second
	if after > 10*time.Second || after < time.Second {
		t.Errorf("the kernel gives up after %v", after)
	}
}

func TestConnectToSocket(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "etcd.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, address := range []string{"unix://" + path, "unix:" + path} {
		conn, err := connect(t.Context(), address)
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
	}
}

// A host that gets another address does not wait for the connection from the old one to die.
func TestMovedHostConnectsAnew(t *testing.T) {
	t.Parallel()
	etcd := startEtcd(t, "")
	etcd.put(t, prefix+"/config", network)
	proxy := startProxy(t, etcd.addr())
	h := join(t, openStore(t, proxy.endpoint()), JoinConfig{HostID: "h1"}, "192.0.2.1")
	key := h.awaitHeld("").Own.Record.Key()
	before := proxy.used()
	h.Advertise(advert("192.0.2.2"))
	h.await("has the new address", func(u Update) bool {
		return u.Own.Record.Key() == key && u.Own.Record.Endpoints[0].PublicIP.String() == "192.0.2.2"
	})
	if proxy.used() == before {
		t.Error("wrote over the old connection")
	}
}

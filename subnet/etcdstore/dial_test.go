package etcdstore

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
)

// A host behind a cable that was cut is noticed by the kernel within 10 s.
func TestConnectionIsProbed(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := openStore(t, "http://127.0.0.1:1").client.connect(t.Context(), l.Addr().String())
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
		conn, err := openStore(t, "http://127.0.0.1:1").client.connect(t.Context(), address)
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

func TestKeepAliveOnce(t *testing.T) {
	t.Parallel()
	etcd := startEtcd(t, "")
	file := locked(t, etcd)
	px := startProxy(t, etcd.addr())
	var l logins
	var streams atomic.Int64
	s := l.user(t, px.endpoint(), file)
	s.client.dialOptions = append(s.client.dialOptions, grpc.WithChainStreamInterceptor(
		func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			streams.Add(1)
			return open(ctx, desc, cc, method, opts...)
		}))
	client, err := s.client.dial(t.Context(), px.endpoint())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	lease, err := client.Grant(t.Context(), 60)
	if err != nil {
		t.Fatal(err)
	}
	keep := func(id clientv3.LeaseID) (int64, error) { return keepAliveOnce(t.Context(), client, int64(id)) }
	if ttl, err := keep(lease.ID); ttl != 60 || err != nil {
		t.Errorf("renewed for %d s, %v", ttl, err)
	}
	if _, err := keep(12345); !errors.Is(err, rpctypes.ErrLeaseNotFound) {
		t.Errorf("of a lease that is not: %v", err)
	}
	l.expect(t, 1)
	if _, err := root(t, etcd.Endpoint()).UserChangePassword(t.Context(), "host", "secret"); err != nil { // ends its tokens
		t.Fatal(err)
	}
	if ttl, err := keep(lease.ID); ttl != 60 || err != nil {
		t.Errorf("renewed for %d s, %v after the token was lost", ttl, err)
	}
	l.expect(t, 2)
	px.set(refuse)
	streams.Store(0)
	eventually(t, "has no connection", func() bool {
		_, err = keep(lease.ID)
		return err != nil && strings.Contains(describe(err).Error(), "cannot be reached")
	})
	if n := streams.Load(); n > 3 { // one that is cut, one over the connection that is made at once, one that fails
		t.Errorf("opened %d streams", n)
	}
}

// No answer may fill the memory.
func TestAnswerIsBounded(t *testing.T) {
	t.Parallel()
	etcd := startEtcd(t, "")
	for i := range 18 {
		etcd.put(t, subnets+string('a'+byte(i)), strings.Repeat("x", 1<<20))
	}
	client, err := openStore(t, etcd.Endpoint()).client.connection(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.Get(t.Context(), subnets, clientv3.WithPrefix()); err == nil || !strings.Contains(err.Error(), "larger than max") {
		t.Errorf("got %v", err)
	}
	if got, err := client.Get(t.Context(), subnets, clientv3.WithPrefix(), clientv3.WithLimit(9)); err != nil || len(got.Kvs) != 9 {
		t.Errorf("half of it: %v", err)
	}
}

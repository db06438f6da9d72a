package etcdstore

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	grpcbackoff "google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
)

const (
	// requestTimeout bounds every request that carries a few keys, of Members as long as one of the endpoints keeps it.
	requestTimeout = 3 * time.Second
	// maxPatience is how long Members wait at most when none does.
	maxPatience = 24 * time.Second
	// handshakeTimeout is how long etcd may take to answer on a connection at all. The kernel must have made it within
	// requestTimeout, also if etcd is busy with the passwords of others.
	handshakeTimeout = 30 * time.Second
	// pageTimeout bounds a request for a page of keys.
	pageTimeout = 30 * time.Second
	// pingTime and pingTimeout notice a peer that swallows packets. gRPC allows no shorter pingTime; pingTimeout is
	// also TCP_USER_TIMEOUT, which cuts a connection that does not acknowledge what was sent. Without a stream there are
	// no pings: etcd takes them for an attack and closes the connection.
	pingTime    = 10 * time.Second
	pingTimeout = 3 * time.Second
	// probeTime is when the kernel asks whether a silent peer is there, at no cost to etcd; it waits pingTimeout.
	probeTime = 5 * time.Second
)

// maxAnswer bounds what one answer of etcd may occupy here: a page of honest leases is a fraction of it.
const maxAnswer = 16 << 20

// dial makes a client that is let in, which lives no longer than ctx. It waits for etcd only to authenticate.
func (c *Client) dial(ctx context.Context, endpoints ...string) (*clientv3.Client, error) {
	if _, err := c.login.token(ctx); err != nil {
		return nil, describe(err, endpoints...)
	}
	return c.open(ctx, endpoints)
}

// open makes a client that authenticates when it has to. It waits for nothing.
func (c *Client) open(ctx context.Context, endpoints []string) (*clientv3.Client, error) {
	return c.plain(ctx, endpoints,
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: pingTime, Timeout: pingTimeout}),
		grpc.WithChainUnaryInterceptor(c.login.unary),
		grpc.WithChainStreamInterceptor(c.login.stream),
	)
}

// plain makes a client that nobody lets in, and that is not pinged: an etcd that compares passwords answers late.
func (c *Client) plain(ctx context.Context, endpoints []string, opts ...grpc.DialOption) (*clientv3.Client, error) {
	tls, err := c.cfg.tls(endpoints)
	if err != nil {
		return nil, err
	}
	opts = append([]grpc.DialOption{
		grpc.WithContextDialer(c.connect),
		grpc.WithChainUnaryInterceptor(failFast),
		grpc.WithChainStreamInterceptor(failFastOnce()),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           grpcbackoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second},
			MinConnectTimeout: handshakeTimeout,
		}),
	}, opts...)
	client, err := clientv3.New(clientv3.Config{
		Context:            ctx,
		Endpoints:          endpoints,
		TLS:                tls,
		MaxCallRecvMsgSize: maxAnswer,
		MaxUnaryRetries:    1,            // none: the callers retry
		Logger:             zap.NewNop(), // what matters comes back as an error
		DialOptions:        append(opts, c.dialOptions...),
	})
	if err != nil {
		return nil, describe(err, endpoints...)
	}
	return client, nil
}

// connect opens a connection that ends soon after the other side is not there any more. gRPC would have the kernel look
// after two hours. It notes where a name has led.
func (c *Client) connect(ctx context.Context, address string) (net.Conn, error) {
	d := net.Dialer{Timeout: requestTimeout, KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: probeTime, Interval: time.Second, Count: 3}}
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		return d.DialContext(ctx, "unix", "/"+strings.TrimLeft(path, "/"))
	}
	conn, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reached[address] = conn.RemoteAddr().(*net.TCPAddr).AddrPort()
	return conn, nil
}

// failFast lets a request fail with the reason when there is no connection. etcd's client would wait for one until
// the context ends, and then know no more than that it ended.
func failFast(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	return invoke(ctx, method, req, reply, cc, append(opts, grpc.WaitForReady(false))...)
}

// failFastOnce does so for streams, and lets a client open one watch stream and no second one. etcd's client resumes a
// broken watch by itself, where it stopped, also at a cluster that was wiped or restored meanwhile, and says nothing
// about it.
func failFastOnce() grpc.StreamClientInterceptor {
	opened := make(chan struct{}, 1)
	return func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
		if desc.StreamName == "Watch" {
			select {
			case opened <- struct{}{}:
			default:
				return nil, status.Error(codes.Aborted, "the connection was cut")
			}
		}
		return open(ctx, desc, cc, method, append(opts, grpc.WaitForReady(false))...)
	}
}

// keepAliveOnce renews an etcd lease and returns for how many seconds. The error is rpctypes.ErrLeaseNotFound if it has
// ended. Without a connection it fails at once, where etcd's client would try again and again without a pause.
func keepAliveOnce(ctx context.Context, client *clientv3.Client, leaseID int64) (ttl int64, err error) {
	for again := false; ; again = true {
		ttl, err = renew(ctx, client.ActiveConnection(), leaseID)
		switch {
		case lostToken(err) && !again:
			continue
		case err != nil:
			return 0, rpctypes.Error(err)
		case ttl <= 0:
			return 0, rpctypes.ErrLeaseNotFound
		}
		return ttl, nil
	}
}

func renew(ctx context.Context, conn *grpc.ClientConn, leaseID int64) (ttl int64, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := etcdserverpb.NewLeaseClient(conn).LeaseKeepAlive(ctx)
	if err != nil {
		return 0, err
	}
	if err := stream.Send(&etcdserverpb.LeaseKeepAliveRequest{ID: leaseID}); err != nil && !errors.Is(err, io.EOF) {
		return 0, err
	}
	got, err := stream.Recv() // also what went wrong if Send returned io.EOF
	if err != nil {
		return 0, err
	}
	return got.TTL, stream.CloseSend()
}

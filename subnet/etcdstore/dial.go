package etcdstore

import (
	"context"
	"net"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	// requestTimeout bounds every request that carries a few keys, of Members as long as one of the endpoints keeps it.
	requestTimeout = 3 * time.Second
	// maxPatience is how long Members wait at most when none does.
	maxPatience = 24 * time.Second
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

// dial makes a client, which lives no longer than ctx. It waits for etcd only to authenticate.
func (s *Store) dial(ctx context.Context, endpoints ...string) (*clientv3.Client, error) {
	tls, err := s.cfg.tls(endpoints)
	if err != nil {
		return nil, err
	}
	password, err := s.cfg.password()
	if err != nil {
		return nil, err
	}
	client, err := clientv3.New(clientv3.Config{
		Context:              ctx,
		Endpoints:            endpoints,
		TLS:                  tls,
		Username:             s.cfg.Username,
		Password:             password,
		DialTimeout:          requestTimeout,
		DialKeepAliveTime:    pingTime,
		DialKeepAliveTimeout: pingTimeout,
		MaxUnaryRetries:      2,            // one for a token that has ended; otherwise the callers retry
		Logger:               zap.NewNop(), // what matters comes back as an error
		DialOptions: append([]grpc.DialOption{
			grpc.WithContextDialer(connect),
			grpc.WithChainUnaryInterceptor(failFast),
			grpc.WithChainStreamInterceptor(refuseResumption()),
			grpc.WithConnectParams(grpc.ConnectParams{
				Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second},
				MinConnectTimeout: requestTimeout,
			}),
		}, s.dialOptions...),
	})
	if err != nil {
		return nil, describe(err, endpoints...)
	}
	return client, nil
}

// connect opens a connection that ends soon after the other side is not there any more. gRPC would have the kernel look
// after two hours.
func connect(ctx context.Context, address string) (net.Conn, error) {
	d := net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: probeTime, Interval: time.Second, Count: 3}}
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		return d.DialContext(ctx, "unix", "/"+strings.TrimLeft(path, "/"))
	}
	return d.DialContext(ctx, "tcp", address)
}

// failFast lets a request fail with the reason when there is no connection. etcd's client would wait for one until
// the context ends, and then know no more than that it ended.
func failFast(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	return invoke(ctx, method, req, reply, cc, append(opts, grpc.WaitForReady(false))...)
}

// refuseResumption lets a client open one watch stream and no second one. etcd's client resumes a broken watch by
// itself, where it stopped, also at a cluster that was wiped or restored meanwhile, and says nothing about it.
func refuseResumption() grpc.StreamClientInterceptor {
	opened := make(chan struct{}, 1)
	return func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
		if desc.StreamName == "Watch" {
			select {
			case opened <- struct{}{}:
			default:
				return nil, status.Error(codes.Aborted, "the connection was cut")
			}
		}
		return open(ctx, desc, cc, method, opts...)
	}
}

package etcdstore

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path"
	"slices"
	"strings"
	"sync"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
)

// Client is how one etcd is reached, which may hold several networks: a Store is one of them. It can be used by several
// goroutines at once.
type Client struct {
	cfg   Config
	log   *slog.Logger
	login *login
	ctx   context.Context // ends with Close
	close context.CancelFunc
	look  chan struct{} // capacity 1: see what members there are

	dialOptions []grpc.DialOption // for tests

	mu        sync.Mutex
	endpoints endpoints                 // seeds and learned
	seeds     []string                  // those of the configuration
	learned   []string                  // where etcd's members say that they serve
	cluster   uint64                    // the id of the one that is followed; 0: not known yet
	seen      map[string]uint64         // by URL: the cluster that the endpoint said to be of
	reached   map[string]netip.AddrPort // by host:port: where that was when last it was connected to
	shared    *clientv3.Client          // for single requests; nil until the first
}

// NewClient checks the configuration and that its files can be read. It does not speak to etcd.
func NewClient(cfg Config, log *slog.Logger) (*Client, error) {
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("etcd: %w", err)
	}
	if cfg.PasswordFile != "" {
		if fi, err := os.Stat(cfg.PasswordFile); err == nil && fi.Mode().Perm()&0o077 != 0 {
			log.Warn("others can read the password file: make it 0600", "file", cfg.PasswordFile)
		}
	}
	c := &Client{cfg: cfg, log: log, endpoints: endpoints(nil).next(cfg.Endpoints), seeds: cfg.Endpoints, reached: map[string]netip.AddrPort{}, seen: map[string]uint64{}, look: make(chan struct{}, 1)}
	c.ctx, c.close = context.WithCancel(context.Background())
	if cfg.Username != "" {
		c.login = &login{ctx: c.ctx, password: cfg.password, authenticate: c.authenticate}
	}
	return c, nil
}

// Store is the network at a path like /coreos.com/network.
func (c *Client) Store(prefix string) (*Store, error) {
	if prefix != "/" {
		prefix = strings.TrimRight(prefix, "/")
	}
	if !strings.HasPrefix(prefix, "/") || path.Clean(prefix) != prefix || prefix == "/" {
		return nil, fmt.Errorf("etcd: prefix %q is not a path like /coreos.com/network", prefix)
	}
	return &Store{client: c, prefix: prefix, log: c.log}, nil
}

// Close drops the connection for the Stores' own requests, which fail from now on. Members have their own, and Run to
// end them.
func (c *Client) Close() error {
	c.close()
	return c.drop()
}

// drop ends what is under way on the shared connection; the next request gets another.
func (c *Client) drop() error {
	c.mu.Lock()
	shared := c.shared
	c.shared = nil
	c.mu.Unlock()
	if shared == nil {
		return nil
	}
	return shared.Close()
}

// connection returns the client for single requests. The first waits until it is known that the endpoints are of one cluster.
func (c *Client) connection(ctx context.Context) (*clientv3.Client, error) {
	c.mu.Lock()
	shared := c.shared
	c.mu.Unlock()
	if shared != nil {
		return shared, nil
	}
	urls, err := c.members(ctx, c.Endpoints())
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	urls = slices.DeleteFunc(urls, func(url string) bool { return !slices.Contains(c.endpoints.urls(), url) })
	if len(urls) == 0 {
		return nil, errRetired
	}
	if c.shared == nil {
		if shared, err = c.open(c.ctx, urls); err != nil {
			return nil, err
		}
		c.shared = shared
	}
	return c.shared, nil
}

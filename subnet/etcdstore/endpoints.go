package etcdstore

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
)

// errRetired says that the endpoint that was followed is none any more.
var errRetired = errors.New("etcd has other endpoints now")

// endpoint is an address of etcd.
type endpoint struct {
	url     string
	retired context.Context // ends when the endpoint is none any more
	retire  context.CancelFunc
}

// endpoints are the addresses in force.
type endpoints []endpoint

// next are the endpoints of these addresses; those that were in force before stay the same.
func (e endpoints) next(list []string) endpoints {
	var next endpoints
	for _, url := range slices.Compact(slices.Sorted(slices.Values(list))) {
		i := slices.IndexFunc(e, func(old endpoint) bool { return old.url == url })
		if i >= 0 {
			next = append(next, e[i])
			continue
		}
		ctx, cancel := context.WithCancel(context.Background())
		next = append(next, endpoint{url, ctx, cancel})
	}
	// Hosts that start together should not all burden the same one.
	rand.Shuffle(len(next), func(i, j int) { next[i], next[j] = next[j], next[i] })
	return next
}

func (e endpoints) urls() []string {
	urls := make([]string, len(e))
	for i := range e {
		urls[i] = e[i].url
	}
	return urls
}

// SetEndpoints moves the Client and its Members to other endpoints of the same etcd, or changes nothing if one of them
// makes no sense. Who follows etcd at an endpoint that stays is not disturbed; others go on where they were.
func (c *Client) SetEndpoints(list []string) error {
	cfg := c.cfg
	cfg.Endpoints = list
	if err := cfg.validate(); err != nil {
		return fmt.Errorf("etcd: %w", err)
	}
	c.mu.Lock()
	old := c.endpoints
	c.endpoints = old.next(cfg.Endpoints)
	c.mu.Unlock()
	for _, e := range old {
		if !slices.Contains(cfg.Endpoints, e.url) {
			e.retire()
		}
	}
	c.login.forgive()
	return c.drop() // it may want TLS where the next one does not; what is under way with it fails
}

// Endpoints are the URLs in force.
func (c *Client) Endpoints() []string { return slices.Sorted(slices.Values(c.current().urls())) }

// Addrs are where the endpoints in force are: where their URLs say, or where their names led last. One that was not
// reached by its name yet is not among them.
func (c *Client) Addrs() (addrs []netip.Addr) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.endpoints {
		_, address, _ := strings.Cut(e.url, "://")
		at, err := netip.ParseAddrPort(address)
		if err != nil {
			at = c.reached[address]
		}
		if at.IsValid() {
			addrs = append(addrs, at.Addr().Unmap())
		}
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	return slices.Compact(addrs)
}

// current are the endpoints in force.
func (c *Client) current() endpoints {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.endpoints
}

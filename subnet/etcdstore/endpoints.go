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
	c.use(cfg.Endpoints, nil)
	c.login.forgive()
	return c.drop() // it may want TLS where the next one does not; what is under way with it fails
}

// use puts endpoints in force: those of the configuration, and those that were learned.
func (c *Client) use(seeds, learned []string) {
	c.mu.Lock()
	old := c.endpoints
	c.seeds, c.learned = seeds, learned
	c.endpoints = old.next(slices.Concat(seeds, learned))
	now := c.endpoints.urls()
	c.mu.Unlock()
	for _, e := range old {
		if !slices.Contains(now, e.url) {
			e.retire()
		}
	}
}

// followMembers takes in where the members of an etcd of overlayd's serve, of those that have been seen to be of the cluster
// that is followed, and reports whether that is news. The endpoints of the configuration are the seeds of it, and stay: they
// must all be encrypted, as all of those are. So a host that knows one member knows those that take its place.
func (c *Client) followMembers(ctx context.Context) bool {
	c.mu.Lock()
	seeds, cluster, before := c.seeds, c.cluster, c.learned
	c.mu.Unlock()
	if cluster == 0 || !encrypted(seeds...) {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	members, err := c.EtcdMembers(ctx)
	if err != nil {
		return false // those that are known stay
	}
	var urls, unseen []string
	for _, m := range members {
		for _, url := range m.Clients {
			if parsed, err := parseEndpoint(url); m.Ours && !m.Learner && err == nil && encrypted(parsed) && !slices.Contains(seeds, parsed) {
				urls = append(urls, parsed)
			}
		}
	}
	c.mu.Lock()
	unseen = slices.DeleteFunc(slices.Clone(urls), func(url string) bool { return c.seen[url] == cluster })
	c.mu.Unlock()
	c.ask(ctx, unseen)
	c.mu.Lock()
	learned := slices.DeleteFunc(urls, func(url string) bool { return c.seen[url] != cluster })
	same := slices.Equal(c.seeds, seeds) && c.cluster == cluster
	c.mu.Unlock()
	slices.Sort(learned)
	if learned = slices.Compact(learned); !same || slices.Equal(learned, before) {
		return false
	}
	c.use(seeds, learned)
	c.log.Info("etcd's members serve elsewhere too", "endpoints", learned)
	return true
}

// remember takes in the members that a host remembers, if the configuration still names the endpoints that led to them.
func (c *Client) remember(seeds, members []string) {
	if slices.Equal(seeds, c.seeds) && encrypted(seeds...) && encrypted(members...) {
		c.use(seeds, members)
	}
}

// learnt is what a host should remember of where etcd is.
func (c *Client) learnt() (seeds, members []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.seeds, c.learned
}

func encrypted(urls ...string) bool {
	return !slices.ContainsFunc(urls, func(url string) bool { return !strings.HasPrefix(url, "https://") })
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

package etcdstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	// firstCompare and maxCompare are between two looks at endpoints of which it is not known yet of which cluster they
	// are, or which are of another. Where all are of one nobody is asked.
	firstCompare = 5 * time.Second
	maxCompare   = time.Minute
)

// identity is what an endpoint says of which cluster it is.
type identity struct {
	url     string
	cluster uint64
	err     error
}

// ask has endpoints say of which cluster they are, all at once: until ctx ends, and no longer than grace after the first.
func (c *Client) ask(ctx context.Context, urls []string) []identity {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	said := make(chan identity)
	for _, url := range urls {
		go func() {
			id, err := c.identify(ctx, url)
			if err != nil && ctx.Err() != nil {
				err = context.DeadlineExceeded
			}
			said <- identity{url, id, err}
		}()
	}
	var all []identity
	for range urls {
		i := <-said
		if i.err == nil {
			defer time.AfterFunc(grace, cancel).Stop()
			c.mu.Lock()
			c.seen[i.url] = i.cluster
			c.mu.Unlock()
		}
		all = append(all, i)
	}
	slices.SortFunc(all, func(a, b identity) int { return strings.Compare(a.url, b.url) })
	return all
}

// identify asks an endpoint over a connection of its own. That it does not take the token harms nobody who has it.
func (c *Client) identify(ctx context.Context, url string) (cluster uint64, err error) {
	client, err := c.plain(ctx, []string{url})
	if err != nil {
		return 0, err
	}
	defer client.Close()
	t, err := c.login.token(ctx)
	if err != nil {
		return 0, err
	}
	return clusterOf(t.show(ctx), client)
}

// clusterOf asks for what needs no permission.
func clusterOf(ctx context.Context, client *clientv3.Client) (uint64, error) {
	got, err := etcdserverpb.NewMaintenanceClient(client.ActiveConnection()).Status(ctx, &etcdserverpb.StatusRequest{})
	if err != nil {
		return 0, rpctypes.Error(err)
	}
	return got.Header.ClusterId, nil
}

// admit says why the endpoint of a connection is not to be followed. The host stays with the cluster that it knows, for in
// another there are other leases. It follows another if that has taken the place of the one that it knows: at this endpoint,
// or at all of them, and not beside it.
func (c *Client) admit(ctx context.Context, conn *conn) error {
	url := conn.Endpoints()[0]
	bound, cancel := conn.bound(ctx)
	defer cancel()
	cluster, err := clusterOf(bound, conn.Client)
	if err != nil {
		return describe(err, url)
	}
	c.mu.Lock()
	was, known := c.seen[url], c.cluster
	c.seen[url] = cluster
	c.mu.Unlock()
	if cluster == known {
		return nil
	}
	ctx, cancel = context.WithTimeout(ctx, grace)
	defer cancel()
	silent := false
	for _, other := range c.ask(ctx, slices.DeleteFunc(c.Endpoints(), func(u string) bool { return u == url })) {
		if silent = silent || other.err != nil; other.err == nil && other.cluster != cluster {
			return clash(identity{url: url, cluster: cluster}, other)
		}
	}
	if known != 0 && was != known && silent {
		return fmt.Errorf("etcd at %s is of cluster %x, and this host follows cluster %x, of which no endpoint answers: if the cluster was made anew, or restored, name only where it is in etcd-endpoints",
			url, cluster, known)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cluster = cluster
	maps.DeleteFunc(c.seen, func(_ string, id uint64) bool { return id != cluster }) // of what was
	return nil
}

// know takes in the cluster that the host remembers; 0: none.
func (c *Client) know(cluster uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cluster = cmp.Or(c.cluster, cluster)
}

// known is the cluster that is followed; 0: not known yet.
func (c *Client) known() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cluster
}

// clash is the error that two endpoints are of two clusters.
func clash(a, b identity) error {
	return fmt.Errorf("etcd at %s is of cluster %x, etcd at %s of cluster %x: name endpoints of one cluster only in etcd-endpoints",
		a.url, a.cluster, b.url, b.cluster)
}

// foreign is the error that endpoints are of another cluster than the one that is followed.
func (c *Client) foreign() (err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, url := range slices.Sorted(slices.Values(c.endpoints.urls())) {
		if id := c.seen[url]; id != 0 && c.cluster != 0 && id != c.cluster {
			err = also(err, fmt.Errorf("etcd at %s is of cluster %x and not used, for this host follows cluster %x: take it out of etcd-endpoints, or the others",
				url, id, c.cluster))
		}
	}
	return err
}

// also puts two errors into one line.
func also(a, b error) error {
	if a == nil || b == nil {
		return errors.Join(a, b)
	}
	return fmt.Errorf("%w; %w", a, b)
}

// members are the endpoints for single requests: those that answer, of one cluster.
func (c *Client) members(ctx context.Context, endpoints []string) (urls []string, err error) {
	if len(endpoints) == 1 {
		return endpoints, nil
	}
	known := c.known()
	one := identity{cluster: known}
	why := map[string][]string{} // the endpoints that do not answer, by complaint
	for _, i := range c.ask(ctx, endpoints) {
		switch {
		case i.err != nil:
			why[complaint(i.err)] = append(why[complaint(i.err)], i.url)
			err = i.err
		case one.cluster == 0 || i.cluster == one.cluster:
			one, urls = i, append(urls, i.url)
		case known == 0:
			return nil, clash(one, i)
		}
	}
	if len(urls) > 0 {
		return urls, nil
	}
	var texts []string
	for _, text := range slices.Sorted(maps.Keys(why)) {
		texts = append(texts, "etcd at "+strings.Join(why[text], ", ")+text)
	}
	if f := c.foreign(); f != nil {
		return nil, f
	}
	return nil, failure{strings.Join(texts, "; "), err}
}

// compare looks at the endpoints beside the one that is followed until ctx ends, and for others, and tells when it knows more.
func (c *Client) compare(ctx context.Context, news func(error)) {
	var before string
	for wait := backoff(0); ctx.Err() == nil; c.pause(ctx, wait.next(firstCompare, maxCompare)) {
		moved := c.followMembers(ctx)
		c.mu.Lock()
		urls := slices.DeleteFunc(c.endpoints.urls(), func(u string) bool { return c.cluster == 0 || c.seen[u] == c.cluster })
		c.mu.Unlock()
		bound, cancel := context.WithTimeout(ctx, requestTimeout)
		c.ask(bound, urls)
		cancel()
		if err := c.foreign(); moved || errText(err) != before {
			before = errText(err)
			news(err)
		}
	}
}

// pause waits until it is time to compare again, or something has changed.
func (c *Client) pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-c.look:
	case <-time.After(d):
	}
}

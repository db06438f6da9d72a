package etcdstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// memberPrefix begins the name in etcd of a member that overlayd runs; the host's follows. Such a member says where hosts
// reach it, and nobody needs to tell them beside that. An operator's may say what is right behind a balancer only.
const memberPrefix = "overlayd-"

// PeerPort is where members of etcd that overlayd runs hear each other, if they serve at etcd's own port: the next.
const PeerPort = 2380

// PeerURL is where such a member at an address hears the others.
func PeerURL(at netip.AddrPort) string { return "https://" + at.String() }

// MemberName is the name in etcd of the member that a host runs.
func MemberName(host string) string { return memberPrefix + host }

// EtcdMember is a member of etcd.
type EtcdMember struct {
	ID      uint64
	Name    string   // of its host, if overlayd runs it; empty: it was added and has not begun yet
	Peers   []string // URLs at which it hears the others
	Clients []string // URLs at which it serves
	Learner bool     // it has no vote yet
	Ours    bool     // overlayd runs it

	// What it says of itself, see [Client.AskMembers].
	Leader  bool
	Size    int64 // of its data, in bytes
	Version string
	Err     error // it does not answer, or says that it is not well
}

// Is reports whether an operator calls the member so: by its host's name, its id or an address.
func (m EtcdMember) Is(name string) bool {
	at := func(url string) bool {
		_, address, _ := strings.Cut(url, "://")
		return address == name || strings.HasPrefix(address, name+":") || strings.HasPrefix(address, "["+name+"]:")
	}
	return name != "" && (m.Name == name || fmt.Sprintf("%x", m.ID) == name ||
		slices.ContainsFunc(m.Peers, at) || slices.ContainsFunc(m.Clients, at))
}

// EtcdMembers lists etcd's members, by name.
func (c *Client) EtcdMembers(ctx context.Context) (all []EtcdMember, err error) {
	err = c.request(ctx, func(ctx context.Context, client *clientv3.Client) error {
		list, err := client.MemberList(ctx)
		if err != nil {
			return describe(err, client.Endpoints()...)
		}
		for _, m := range list.Members {
			name, ours := strings.CutPrefix(m.Name, memberPrefix)
			all = append(all, EtcdMember{ID: m.ID, Name: name, Peers: m.PeerURLs, Clients: m.ClientURLs, Learner: m.IsLearner, Ours: ours})
		}
		return nil
	})
	slices.SortFunc(all, func(a, b EtcdMember) int { return cmp.Or(strings.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID)) })
	return all, err
}

// AskMembers has each of the members say how it is, all at once, until ctx ends. Who answers nowhere has an Err.
func (c *Client) AskMembers(ctx context.Context, members []EtcdMember) {
	var all sync.WaitGroup
	for i := range members {
		all.Go(func() { c.askMember(ctx, &members[i]) })
	}
	all.Wait()
}

func (c *Client) askMember(ctx context.Context, m *EtcdMember) {
	m.Err = errors.New("it has not begun yet")
	for _, url := range m.Clients {
		client, err := c.plain(ctx, []string{url})
		if err != nil {
			m.Err = err
			continue
		}
		said, err := client.Status(ctx, url)
		client.Close()
		if err != nil {
			m.Err = describe(err, url)
			continue
		}
		m.Leader, m.Size, m.Version, m.Err = said.Leader == m.ID, said.DbSize, said.Version, nil
		if len(said.Errors) > 0 {
			m.Err = errors.New(strings.Join(said.Errors, ", "))
		}
		return
	}
}

// Admit adds the member that hears others at a URL, and gives it a vote when it has caught up: until then it is no loss if it
// never begins. It says what it waits for. Called again, it goes on where it was.
func (c *Client) Admit(ctx context.Context, peer string, say func(string)) error {
	id, learner, err := c.add(ctx, peer, say)
	if err != nil || !learner {
		return err
	}
	said := ""
	for {
		err := c.request(ctx, func(ctx context.Context, client *clientv3.Client) error {
			_, err := client.MemberPromote(ctx, id)
			return err
		})
		switch {
		case err == nil || errors.Is(err, rpctypes.ErrMemberNotLearner):
			return nil
		case errors.Is(err, rpctypes.ErrMemberNotFound):
			return fmt.Errorf("member %x was removed meanwhile", id)
		case ctx.Err() != nil:
			return fmt.Errorf("member %x has no vote yet: %w", id, context.Cause(ctx))
		case errors.Is(err, rpctypes.ErrPermissionDenied):
			return describe(err, c.Endpoints()...)
		}
		if text := err.Error(); text != said {
			say("waiting for it to begin and to catch up (" + text + ")")
			said = text
		}
		sleep(ctx, time.Second)
	}
}

// add makes a member a learner, if it is none yet. Etcd takes one at a time, and none while its members have not been
// connected for some seconds.
func (c *Client) add(ctx context.Context, peer string, say func(string)) (id uint64, learner bool, err error) {
	said := ""
	for {
		members, err := c.EtcdMembers(ctx)
		if err != nil {
			return 0, false, err
		}
		for _, m := range members {
			if slices.Contains(m.Peers, peer) {
				return m.ID, m.Learner, nil
			}
		}
		err = c.request(ctx, func(ctx context.Context, client *clientv3.Client) error {
			added, err := client.MemberAddAsLearner(ctx, []string{peer})
			if err == nil {
				id = added.Member.ID
			}
			return err
		})
		switch {
		case err == nil:
			return id, true, nil
		case ctx.Err() != nil:
			return 0, false, err
		case !errors.Is(err, rpctypes.ErrUnhealthy) && !errors.Is(err, rpctypes.ErrTooManyLearners):
			return 0, false, describe(err, c.Endpoints()...)
		}
		if text := err.Error(); text != said {
			say("waiting for the members that there are (" + text + ")")
			said = text
		}
		sleep(ctx, time.Second)
	}
}

// Expel removes a member. Etcd refuses if the others could not go on without it.
func (c *Client) Expel(ctx context.Context, id uint64) error {
	return c.request(ctx, func(ctx context.Context, client *clientv3.Client) error {
		_, err := client.MemberRemove(ctx, id)
		if errors.Is(err, rpctypes.ErrUnhealthy) || errors.Is(err, rpctypes.ErrMemberNotEnoughStarted) {
			return fmt.Errorf("without it fewer members than a majority would answer: bring those that are away back, or remove them first (%w)", err)
		}
		return describe(err, client.Endpoints()...)
	})
}

// Snapshot writes all that etcd holds, as one member has it, with a checksum at the end.
func (c *Client) Snapshot(ctx context.Context, w io.Writer) (n int64, err error) {
	client, err := c.connection(ctx)
	if err != nil {
		return 0, err
	}
	snapshot, err := client.Snapshot(ctx)
	if err != nil {
		return 0, describe(err, client.Endpoints()...)
	}
	defer snapshot.Close()
	n, err = io.Copy(w, snapshot)
	if err == nil && n%512 == 0 { // a database is whole pages; what follows is its SHA-256
		err = errors.New("it has ended early")
	}
	if err != nil {
		return n, fmt.Errorf("snapshot: %w", err)
	}
	return n, nil
}

// Others are the peer URLs of each of etcd's members but for the one that hears others at some of peers, and whether there is
// such a one, which has not begun yet.
func (c *Client) Others(ctx context.Context, peers []string) (others [][]string, added bool, err error) {
	all, err := c.EtcdMembers(ctx)
	for _, m := range all {
		switch {
		case !slices.ContainsFunc(m.Peers, func(url string) bool { return slices.Contains(peers, url) }):
			others = append(others, m.Peers)
		case m.Name != "": // a member without its data may vote against what it has voted for
			address := strings.TrimPrefix(m.Peers[0], "https://")
			return nil, false, fmt.Errorf("a member at %s has begun before, and its data are lost: overlayctl members add %s --replace %[1]s", address, address)
		default:
			added = true
		}
	}
	return others, added, err
}

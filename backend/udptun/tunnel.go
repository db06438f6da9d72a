// Package udptun carries packets as flannel's udp does: each IPv4 packet that is sent into a TUN link goes to the host of its
// destination's subnet, as the payload of a datagram, and nothing else. It takes and gives packets by many at once (TSO of the TUN
// link, GSO and GRO of UDP), and touches their payload only to finish and to check checksums.
package udptun

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"
)

// linger is how long packets to a removed peer are still carried: they were sent before the route to it was another's, and wait
// in the link's queue for as long as this process waits for a processor.
const linger = 2 * time.Second

// repliesPerSecond is how many senders are told in a second that there is no way.
const repliesPerSecond = 100

// Config is what a Tunnel needs.
type Config struct {
	TUN   int // descriptor of the link, non-blocking, with IFF_VNET_HDR; the Tunnel closes it
	Local netip.Addr
	Port  uint16
	NoGSO bool // the kernel shall make no datagrams of a large one
	Log   *slog.Logger
}

// Tunnel carries packets until its link is gone, or it is closed.
type Tunnel struct {
	Counts

	log     *slog.Logger
	tun     *waiter
	noGSO   bool
	said    limited
	replies *rate.Limiter
	peers   atomic.Pointer[peers]
	sends   atomic.Pointer[socket]

	mu      sync.Mutex // of what follows, and for who stores peers and sends
	closed  bool
	leaving map[netip.Prefix]int // subnets of removed peers that linger, by the call of SetPeers
	calls   int
	running sync.WaitGroup
	done    chan struct{}
}

// Counts are packets that were not carried.
type Counts struct {
	NoRoute   atomic.Uint64 // to no peer's subnet
	Malformed atomic.Uint64
	Unsent    atomic.Uint64 // datagrams that the kernel did not take
}

// Open begins to carry packets. Where it fails, the descriptor is closed.
func Open(cfg Config) (*Tunnel, error) {
	tun, err := newWaiter(cfg.TUN)
	if err != nil {
		return nil, err
	}
	t := &Tunnel{
		log: cfg.Log, tun: tun, noGSO: cfg.NoGSO,
		replies: rate.NewLimiter(repliesPerSecond, repliesPerSecond), done: make(chan struct{}),
		leaving: map[netip.Prefix]int{},
	}
	t.peers.Store(newPeers())
	err = offload(cfg.TUN)
	if err == nil {
		err = t.Move(cfg.Local, cfg.Port)
	}
	if err != nil {
		tun.close()
		return nil, err
	}
	t.running.Go(t.send)
	go func() {
		t.running.Wait()
		tun.close()
		close(t.done)
	}()
	return t, nil
}

// offload tells the kernel what we can take: packets larger than the MTU, and without a checksum.
func offload(fd int) error {
	const tcp = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6 | unix.TUN_F_TSO_ECN
	err := unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, tcp|unix.TUN_F_USO4|unix.TUN_F_USO6)
	if errors.Is(err, unix.EINVAL) { // before Linux 6.2
		err = unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, tcp)
	}
	if err != nil {
		return fmt.Errorf("offload of the TUN link: %w", err)
	}
	return nil
}

// Move sends and receives at another address from now on. Where that cannot be had, nothing changes.
func (t *Tunnel) Move(local netip.Addr, port uint16) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	before, at := t.sends.Load(), netip.AddrPortFrom(local, port)
	switch {
	case t.closed:
		return os.ErrClosed
	case before != nil && before.at == at:
		return nil
	}
	s, err := listen(at, t.noGSO)
	if err != nil {
		return err
	}
	t.sends.Store(s)
	t.running.Go(func() { t.receive(s) })
	if before != nil {
		before.wake()
	}
	return nil
}

// At is where datagrams are sent from and received.
func (t *Tunnel) At() netip.AddrPort { return t.sends.Load().at }

// SetPeers puts peers and removes those of the subnets gone, to which nothing is sent once they have lingered.
func (t *Tunnel) SetPeers(put []Peer, gone []netip.Prefix) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.calls++
	call := t.calls
	for _, subnet := range gone {
		t.leaving[subnet] = call
	}
	var covered []netip.Prefix // an older, narrower subnet would take what is a new peer's
	for subnet := range t.leaving {
		if slices.ContainsFunc(put, func(p Peer) bool { return p.Subnet.Overlaps(subnet) }) {
			covered = append(covered, subnet)
			delete(t.leaving, subnet)
		}
	}
	t.peers.Store(t.peers.Load().with(put, covered))
	if len(gone) > 0 {
		time.AfterFunc(linger, func() { t.leave(call) })
	}
}

// leave forgets the peers that a call of SetPeers removed, and none has put again.
func (t *Tunnel) leave(call int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var gone []netip.Prefix
	for subnet, left := range t.leaving {
		if left == call {
			gone = append(gone, subnet)
			delete(t.leaving, subnet)
		}
	}
	t.peers.Store(t.peers.Load().with(nil, gone))
}

// Peers are all that there are, in the order of their subnets, but for those that linger.
func (t *Tunnel) Peers() []Peer {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.DeleteFunc(t.peers.Load().all(), func(p Peer) bool { return t.leaving[p.Subnet] > 0 })
}

// Done is closed when nothing is carried any more.
func (t *Tunnel) Done() <-chan struct{} { return t.done }

// Close removes the link, and waits for that.
func (t *Tunnel) Close() {
	t.shut()
	<-t.done
}

// shut ends all that runs.
func (t *Tunnel) shut() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	t.tun.wake()
	t.sends.Load().wake()
}

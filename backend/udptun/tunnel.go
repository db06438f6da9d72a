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
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"
)

// repliesPerSecond is how many senders are told in a second that there is no way.
const repliesPerSecond = 100

// Config is what a Tunnel needs.
type Config struct {
	TUN   *os.File // non-blocking, with IFF_VNET_HDR; the Tunnel closes it
	Index int      // of the link
	Local netip.Addr
	Port  uint16
	NoGSO bool // the kernel shall make no datagrams of a large one
	Log   *slog.Logger
}

// Tunnel carries packets until its link is gone, or it is closed.
type Tunnel struct {
	log     *slog.Logger
	tun     *os.File
	raw     syscall.RawConn
	index   int
	noGSO   bool
	peers   atomic.Pointer[peers]
	said    limited
	replies *rate.Limiter

	mu     sync.Mutex // of what follows
	socket *socket
	closed bool

	sends   atomic.Pointer[socket]
	running sync.WaitGroup
	done    chan struct{}
	Counts
}

// Counts are packets that were not carried.
type Counts struct {
	Strangers atomic.Uint64 // from no peer's address
	NoRoute   atomic.Uint64 // to no peer's subnet
	Malformed atomic.Uint64
	Unsent    atomic.Uint64 // datagrams that the kernel did not take
}

// Open begins to carry packets.
func Open(cfg Config) (*Tunnel, error) {
	t := &Tunnel{log: cfg.Log, tun: cfg.TUN, index: cfg.Index, noGSO: cfg.NoGSO, replies: rate.NewLimiter(repliesPerSecond, repliesPerSecond), done: make(chan struct{})}
	t.peers.Store(newPeers())
	var err error
	if t.raw, err = cfg.TUN.SyscallConn(); err != nil {
		return nil, err
	}
	if err := offload(t.raw); err != nil {
		return nil, err
	}
	if err := t.Move(cfg.Local, cfg.Port); err != nil {
		return nil, err
	}
	t.running.Go(t.send)
	go func() {
		t.running.Wait()
		close(t.done)
	}()
	return t, nil
}

// offload tells the kernel what we can take: packets larger than the MTU, and without a checksum.
func offload(raw syscall.RawConn) (err error) {
	const tcp = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6 | unix.TUN_F_TSO_ECN
	controlErr := raw.Control(func(fd uintptr) {
		err = unix.IoctlSetInt(int(fd), unix.TUNSETOFFLOAD, tcp|unix.TUN_F_USO4|unix.TUN_F_USO6)
		if errors.Is(err, unix.EINVAL) { // before Linux 6.2
			err = unix.IoctlSetInt(int(fd), unix.TUNSETOFFLOAD, tcp)
		}
	})
	if err := errors.Join(controlErr, err); err != nil {
		return fmt.Errorf("offload of the TUN link: %w", err)
	}
	return nil
}

// Move sends and receives at another address from now on. Where that cannot be had, nothing changes.
func (t *Tunnel) Move(local netip.Addr, port uint16) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	at := netip.AddrPortFrom(local, port)
	switch {
	case t.closed:
		return os.ErrClosed
	case t.socket != nil && t.socket.at == at:
		return nil
	}
	s, err := listen(at, t.noGSO)
	if err != nil {
		return err
	}
	before := t.socket
	t.socket = s
	t.sends.Store(s)
	t.running.Go(func() { t.receive(s) })
	if before != nil {
		before.conn.Close()
	}
	return nil
}

// At is where datagrams are sent from and received.
func (t *Tunnel) At() netip.AddrPort { return t.sends.Load().at }

// SetPeers puts peers and removes those of the subnets gone.
func (t *Tunnel) SetPeers(put []Peer, gone []netip.Prefix) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.peers.Store(t.peers.Load().with(put, gone))
}

// Peers are all that there are, in the order of their subnets.
func (t *Tunnel) Peers() []Peer { return t.peers.Load().all() }

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
	t.tun.Close()
	t.socket.conn.Close()
}

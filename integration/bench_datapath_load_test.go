package integration

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// loadSlice is how long one measurement lasts: short, so that what else the machine does falls on all that is compared.
const loadSlice = 100 * time.Millisecond

// load is what one measurement saw.
type load struct {
	count     float64         // gigabits, transactions or packets that arrived
	seconds   float64         // in which they did
	cpu       float64         // seconds of all CPUs, of sender and receiver and of the kernel for them
	latencies []time.Duration // of transactions
}

// loads are the kinds of traffic. The sockets are the namespaces', the threads are the benchmark's own.
var loads = [...]struct {
	name string
	unit string // of load.count
	run  func(t testing.TB, from, to *Node, dst netip.Addr) load
}{
	{"tcp1", "Gbit", func(t testing.TB, from, to *Node, dst netip.Addr) load { return stream(t, from, to, dst, 1) }},
	{"tcp4", "Gbit", func(t testing.TB, from, to *Node, dst netip.Addr) load { return stream(t, from, to, dst, 4) }},
	{"rr", "transaction", transactions},
	{"udp", "packet", datagrams},
}

// stream sends over a number of TCP connections as fast as they go.
func stream(t testing.TB, from, to *Node, dst netip.Addr, connections int) load {
	t.Helper()
	const gigabit = 1e9 / 8
	m := newMeter(t)
	arrived := make([]int, connections)
	for i := range connections {
		client, server := m.connect(from, to, dst)
		m.run(func() error {
			block := make([]byte, 128<<10)
			defer unix.Shutdown(client, unix.SHUT_WR)
			return untilEnd(func() error { return writeAll(client, block) })
		})
		m.run(func() error {
			block := make([]byte, 128<<10)
			for {
				n, err := unix.Read(server, block)
				if n <= 0 {
					return err
				}
				arrived[i] += n
			}
		})
	}
	l := m.wait()
	for _, n := range arrived {
		l.count += float64(n) / gigabit
	}
	return l
}

// transactions sends a small request over TCP, waits for the answer, and so on.
func transactions(t testing.TB, from, to *Node, dst netip.Addr) load {
	t.Helper()
	m := newMeter(t)
	client, server := m.connect(from, to, dst)
	var latencies []time.Duration
	m.run(func() error {
		message := make([]byte, 64)
		defer unix.Shutdown(client, unix.SHUT_WR)
		return untilEnd(func() error {
			begin := time.Now()
			if err := writeAll(client, message); err != nil {
				return err
			}
			if n, err := unix.Read(client, message); n != len(message) {
				return fmt.Errorf("answer of %d bytes: %w", n, err)
			}
			latencies = append(latencies, time.Since(begin))
			return nil
		})
	})
	m.run(func() error {
		message := make([]byte, 64)
		for {
			n, err := unix.Read(server, message)
			if n <= 0 {
				return err
			}
			if err := writeAll(server, message[:n]); err != nil {
				return err
			}
		}
	})
	l := m.wait()
	l.count, l.latencies = float64(len(latencies)), latencies
	return l
}

// datagrams sends small datagrams as fast as they go and counts those that arrive.
func datagrams(t testing.TB, from, to *Node, dst netip.Addr) load {
	t.Helper()
	m := newMeter(t)
	client, server := m.socket(from, dst, unix.SOCK_DGRAM), m.socket(to, dst, unix.SOCK_DGRAM)
	must(t, unix.Bind(server, sockaddr(dst, 0)))
	bound, err := unix.Getsockname(server)
	must(t, err)
	must(t, unix.Connect(client, bound))
	must(t, unix.SetsockoptInt(server, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20))
	must(t, unix.SetsockoptTimeval(server, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 20_000}))
	arrived := 0
	m.run(func() error {
		message := make([]byte, 64)
		return untilEnd(func() error { return writeAll(client, message) })
	})
	m.run(func() error {
		message := make([]byte, 64)
		for end := time.Now().Add(loadSlice); ; {
			_, err := unix.Read(server, message)
			switch {
			case err == nil:
				arrived++
			case !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR):
				return err
			case time.Now().After(end):
				return nil
			}
		}
	})
	l := m.wait()
	l.count, l.seconds = float64(arrived), loadSlice.Seconds()
	return l
}

func untilEnd(f func() error) error {
	for end := time.Now().Add(loadSlice); time.Now().Before(end); {
		if err := f(); err != nil {
			return err
		}
	}
	return nil
}

func writeAll(fd int, b []byte) error {
	for len(b) > 0 {
		n, err := unix.Write(fd, b)
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// connect makes a TCP connection between two nodes. Its sockets block: Go's poller would be in every number.
func (m *meter) connect(from, to *Node, dst netip.Addr) (client, server int) {
	t := m.t
	t.Helper()
	listener := m.socket(to, dst, unix.SOCK_STREAM)
	must(t, unix.Bind(listener, sockaddr(dst, 0)))
	must(t, unix.Listen(listener, 1))
	bound, err := unix.Getsockname(listener)
	must(t, err)
	client = m.socket(from, dst, unix.SOCK_STREAM)
	must(t, unix.Connect(client, bound))
	server, _, err = unix.Accept(listener)
	must(t, err)
	m.files = append(m.files, server)
	for _, fd := range []int{client, server} {
		must(t, unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1))
	}
	return client, server
}

func (m *meter) socket(n *Node, dst netip.Addr, kind int) (fd int) {
	t := m.t
	t.Helper()
	domain := unix.AF_INET
	if dst.Is6() {
		domain = unix.AF_INET6
	}
	must(t, n.Do(func() (err error) {
		fd, err = unix.Socket(domain, kind|unix.SOCK_CLOEXEC, 0)
		return err
	}))
	m.files = append(m.files, fd)
	return fd
}

func sockaddr(a netip.Addr, port int) unix.Sockaddr {
	if a.Is4() {
		return &unix.SockaddrInet4{Addr: a.As4(), Port: port}
	}
	return &unix.SockaddrInet6{Addr: a.As16(), Port: port}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// meter runs threads and counts what they cost, with what the kernel does for them in the background.
type meter struct {
	t       testing.TB
	begin   time.Time
	threads errgroup.Group
	used    atomic.Int64 // CPU time of the threads that have ended
	kernel  []int        // the clocks of the kernel's own threads
	files   []int
}

func newMeter(t testing.TB) *meter {
	t.Helper()
	m := &meter{t: t}
	threads, err := filepath.Glob("/proc/[0-9]*/comm")
	must(t, err)
	for _, path := range threads {
		if name, _ := os.ReadFile(path); strings.HasPrefix(string(name), "ksoftirqd/") {
			pid, _ := strconv.Atoi(strings.Split(path, "/")[2])
			clock, err := openClock(pid)
			must(t, err)
			m.kernel = append(m.kernel, clock)
		}
	}
	m.begin = time.Now()
	return m
}

// run starts a thread.
func (m *meter) run(f func() error) {
	m.threads.Go(func() error {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		clock, err := openClock(0)
		if err != nil {
			return err
		}
		err = f()
		used, clockErr := readClock(clock)
		m.used.Add(int64(used))
		return errors.Join(err, clockErr)
	})
}

// wait waits for the threads.
func (m *meter) wait() load {
	m.t.Helper()
	must(m.t, m.threads.Wait())
	l := load{seconds: time.Since(m.begin).Seconds()}
	for _, clock := range m.kernel {
		used, err := readClock(clock)
		must(m.t, err)
		m.used.Add(int64(used))
	}
	for _, fd := range m.files {
		unix.Close(fd)
	}
	l.cpu = time.Duration(m.used.Load()).Seconds()
	return l
}

// openClock starts the kernel's clock of the CPU that a thread uses, 0 for the caller; softirqs that interrupt it
// count, which is where most of a packet's way is.
func openClock(thread int) (clock int, err error) {
	clock, err = unix.PerfEventOpen(&unix.PerfEventAttr{
		Type: unix.PERF_TYPE_SOFTWARE, Config: unix.PERF_COUNT_SW_TASK_CLOCK, Size: unix.PERF_ATTR_SIZE_VER0,
	}, thread, -1, -1, unix.PERF_FLAG_FD_CLOEXEC)
	if err != nil {
		err = fmt.Errorf("perf_event_open: %w", err)
	}
	return clock, err
}

// readClock reads and ends a clock.
func readClock(clock int) (time.Duration, error) {
	defer unix.Close(clock)
	b := make([]byte, 8)
	_, err := unix.Read(clock, b)
	return time.Duration(binary.NativeEndian.Uint64(b)), err
}

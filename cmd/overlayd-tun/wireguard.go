package main

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"

	"github.com/overlayd/overlayd/backend/kernel"
	"github.com/overlayd/overlayd/backend/userspace"
)

// controlDir is where wg(8) and wgctrl look for the sockets of links that the kernel does not serve.
const controlDir = "/run/wireguard"

// wireGuard is a wireguard link.
type wireGuard struct {
	name    string
	number  int // its index
	device  *device.Device
	control *net.UnixListener
	file    os.FileInfo // of the control socket
	log     *slog.Logger
}

// newWireGuard makes a link, up, and what wg(8) configures it by.
func newWireGuard(w userspace.WireGuard, log *slog.Logger) (*wireGuard, error) {
	s := &wireGuard{name: w.Name, log: log}
	if err := s.listen(); err != nil {
		return nil, err
	}
	t, err := s.tun(w.MTU)
	if err != nil {
		s.control.Close()
		return nil, err
	}
	s.device = device.NewDevice(t, bind(), &device.Logger{Verbosef: device.DiscardLogf, Errorf: once(log, "link", w.Name)})
	// The link may be up before its port is known: of a port that is taken the next hears who sets it.
	if err := errors.Join(s.device.Up(), setUp(w.Name, kernel.AliasWireGuard, w.MTU)); err != nil {
		s.close()
		return nil, err
	}
	go s.serve(s.control)
	return s, nil
}

func (s *wireGuard) tun(mtu int) (tun.Device, error) {
	fd, err := openTUN(s.name)
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fd), devicePath)
	link, err := net.InterfaceByName(s.name)
	if err == nil {
		s.number = link.Index
		var t tun.Device
		if t, err = tun.CreateTUNFromFile(file, mtu); err == nil {
			return t, nil
		}
	}
	file.Close()
	return nil, err
}

// listen makes the control socket: for root and the process's own user.
func (s *wireGuard) listen() error {
	path := controlDir + "/" + s.name + ".sock"
	if err := os.MkdirAll(controlDir, 0o755); err != nil {
		return err
	}
	if c, err := net.Dial("unix", path); err == nil {
		c.Close()
		return fmt.Errorf("another process serves a wireguard link %s at %s: end it", s.name, path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	before := unix.Umask(0o177)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	unix.Umask(before)
	if err != nil {
		return err
	}
	s.control = l
	s.file, err = os.Stat(path)
	return err
}

// serve answers wg(8) until the socket is closed.
func (s *wireGuard) serve(l *net.UnixListener) {
	for {
		c, err := l.AcceptUnix()
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			time.Sleep(time.Second)
		case admit(c) != nil:
			c.Close()
		default:
			go s.device.IpcHandle(c)
		}
	}
}

func (s *wireGuard) index() int            { return s.number }
func (s *wireGuard) done() <-chan struct{} { return s.device.Wait() }

func (s *wireGuard) close() {
	s.control.Close()
	s.device.Close()
	<-s.device.Wait()
}

// look brings the control socket back where somebody removed it, and the device up where the link is: its port may have been taken
// when it came up.
func (s *wireGuard) look() {
	if is, err := os.Stat(controlDir + "/" + s.name + ".sock"); err != nil || !os.SameFile(is, s.file) {
		s.control.SetUnlinkOnClose(false)
		s.control.Close()
		if err := s.listen(); err != nil {
			s.log.Warn("cannot make the control socket anew", "link", s.name, "err", err)
			return
		}
		go s.serve(s.control)
	}
	if link, err := net.InterfaceByName(s.name); err == nil && link.Flags&net.FlagUp != 0 {
		_ = s.device.Up() // it says itself what is wrong
	}
}

// bind is what outer packets are sent and received by.
func bind() conn.Bind {
	if brokenGSO() {
		return singly{conn.NewStdNetBind()}
	}
	return conn.NewStdNetBind()
}

// singly sends each datagram by itself, so that the kernel has none to make of a large one.
type singly struct{ conn.Bind }

// Send implements conn.Bind.
func (b singly) Send(bufs [][]byte, to conn.Endpoint) (err error) {
	for i := range bufs {
		err = errors.Join(err, b.Bind.Send(bufs[i:i+1], to))
	}
	return err
}

// once is a log that says each thing once a minute: a peer can make a library say it for every packet.
func once(log *slog.Logger, args ...any) func(format string, args ...any) {
	var mu sync.Mutex
	said := map[string]time.Time{}
	return func(format string, values ...any) {
		mu.Lock()
		defer mu.Unlock()
		if now := time.Now(); now.Sub(said[format]) > time.Minute {
			said[format] = now
			log.Warn("wireguard", append([]any{"err", fmt.Sprintf(format, values...)}, args...)...)
		}
	}
}

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/userspace"
	"github.com/overlayd/overlayd/cmd/internal/version"
)

const (
	lookEvery = 2 * time.Second  // how often the process looks whether it is still of use
	idleAfter = 30 * time.Second // how long it stays with nothing to serve: the daemon may be about to ask
	quietFor  = 30 * time.Second // how long a connection may say nothing
)

// server answers requests.
type server struct {
	log      *slog.Logger
	listener *net.UnixListener
	links    *links
}

// run answers until ctx ends, or nothing is left to serve.
func (s *server) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { s.listener.Close() })()
	go s.look(ctx, cancel)
	defer s.links.close()
	for {
		conn, err := s.listener.AcceptUnix()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE), errors.Is(err, unix.ECONNABORTED):
			time.Sleep(time.Second) // others may close something
			continue
		case err != nil:
			return fmt.Errorf("accept: %w", err)
		}
		go s.talk(conn)
	}
}

// look ends the process when it is of no more use: it has served nothing for a while, or nobody can reach it because its socket
// is gone. Then the next one could not make the links that this one holds.
func (s *server) look(ctx context.Context, end func()) {
	defer end()
	socket := s.listener.Addr().String()
	mine, err := os.Stat(socket)
	busy, missed := time.Now(), 0
	for tick := time.Tick(lookEvery); err == nil && missed < 2; {
		select {
		case <-ctx.Done():
			return
		case now := <-tick:
			if s.links.look() > 0 {
				busy = now
			}
			if now.Sub(busy) > idleAfter {
				s.log.Info("ended: it had no link to serve")
				return
			}
		}
		if is, err := os.Stat(socket); err == nil && os.SameFile(is, mine) {
			missed = 0
		} else {
			missed++
		}
	}
	s.log.Warn("ended: its socket is gone", "socket", socket, "err", err)
}

// talk answers the requests of one connection.
func (s *server) talk(conn *net.UnixConn) {
	defer conn.Close()
	if err := admit(conn); err != nil {
		s.log.Warn("refused a connection", "err", err)
		return
	}
	lines := bufio.NewScanner(conn)
	lines.Buffer(nil, userspace.MaxLine)
	for {
		_ = conn.SetDeadline(time.Now().Add(quietFor))
		if !lines.Scan() {
			return
		}
		a, err := s.answer(lines.Bytes())
		if err != nil {
			a.Error = err.Error()
		}
		line, err := json.Marshal(a)
		if err != nil {
			s.log.Error("cannot answer", "err", err)
			return
		}
		if _, err := conn.Write(append(line, '\n')); err != nil {
			return
		}
	}
}

// admit refuses who is neither root nor of the process's own user, whatever the socket's permissions are.
func admit(conn *net.UnixConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil || credErr != nil {
		return errors.Join(err, credErr)
	}
	if !slices.Contains([]int{0, os.Geteuid()}, int(cred.Uid)) {
		return fmt.Errorf("process %d of user %d may not ask", cred.Pid, cred.Uid)
	}
	return nil
}

// answer does what a line asks for.
func (s *server) answer(line []byte) (a userspace.Answer, err error) {
	var r userspace.Request
	d := json.NewDecoder(bytes.NewReader(line))
	d.DisallowUnknownFields() // of a later version
	if err := d.Decode(&r); err != nil {
		return a, fmt.Errorf("version %s understands no such request, start it anew: %w", version.String(), err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return a, errors.New("more than one request in a line")
	}
	switch {
	case r.WireGuard != nil:
		return a, s.links.wireGuard(*r.WireGuard)
	case r.UDP != nil:
		return a, s.links.udp(*r.UDP)
	case r.Peers != nil:
		return a, s.links.peers(*r.Peers)
	}
	a = s.links.there()
	a.Version, a.Resident = version.String(), resident()
	return a, nil
}

// resident is how much memory the process has, in bytes; 0 if that cannot be found out.
func resident() int {
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	var size, pages int
	if _, err := fmt.Sscan(string(b), &size, &pages); err != nil {
		return 0
	}
	return pages * os.Getpagesize()
}

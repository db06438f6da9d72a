// Overlayd-tun serves the links that the kernel has not: wireguard where it has no module, and flannel's udp. It outlives
// overlayd, so that a restart of that loses nothing, and ends by itself when it has no link any more. It is started by systemd, or
// by overlayd, with its socket.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/cmd/internal/version"
)

// Exit codes, as overlayd has them.
const (
	exitFailed = 1
	exitUsage  = 2
)

func main() {
	switch {
	case len(os.Args) == 2 && os.Args[1] == "--version":
		fmt.Println("overlayd-tun", version.String())
		return
	case len(os.Args) > 1:
		fmt.Fprintf(os.Stderr, "overlayd-tun: unexpected argument %q: systemd or overlayd starts it, and tells it all by its socket\n", os.Args[1])
		os.Exit(exitUsage)
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	if err := run(ctx, log); err != nil {
		fmt.Fprintf(os.Stderr, "overlayd-tun: %v\n", err)
		os.Exit(exitFailed)
	}
}

func run(ctx context.Context, log *slog.Logger) error {
	l, err := inherited()
	if err != nil {
		return err
	}
	s := &server{log: log, listener: l, links: newLinks(log)}
	log.Info("serving", "version", version.String(), "socket", l.Addr().String())
	return s.run(ctx)
}

// inherited is the listening socket that this process was started with: descriptor 3, as sd_listen_fds(3) has it.
func inherited() (*net.UnixListener, error) {
	if os.Getenv("LISTEN_FDS") != "1" {
		return nil, errors.New("no socket to serve: start overlayd-tun.socket, or overlayd")
	}
	file := os.NewFile(3, "socket")
	defer file.Close()
	l, err := net.FileListener(file)
	if err != nil {
		return nil, fmt.Errorf("descriptor 3: %w", err)
	}
	unixListener, ok := l.(*net.UnixListener)
	if !ok {
		return nil, fmt.Errorf("descriptor 3 is a socket of %s, not of the file system", l.Addr().Network())
	}
	return unixListener, nil
}

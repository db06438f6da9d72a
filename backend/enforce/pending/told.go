package pending

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"time"
)

// The daemon says of an address that it is pending no more, by a file. That is a hint, to end the waiting sooner, and opens nothing:
// to hear it from the kernel takes a socket, and to close one costs 5 to 15 ms when somebody has just taken an element out of a set
// (nft_rcv_nl_event waits until the kernel is done with it). A process cannot end without closing it.

// hint is how long the file is waited for before the kernel is asked.
const hint = 200 * time.Millisecond

func toldFile(runDir string, a netip.Addr) string {
	return filepath.Join(runDir, "in-force", a.String())
}

// Tell says that the addresses are pending no more.
func Tell(runDir string, addrs []netip.Addr) error {
	if err := os.MkdirAll(filepath.Join(runDir, "in-force"), 0o755); err != nil {
		return err
	}
	for _, a := range addrs {
		if err := os.WriteFile(toldFile(runDir, a), nil, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// Forget takes away what was told of the addresses' former owners, or has been heard.
func Forget(runDir string, addrs []netip.Addr) {
	for _, a := range addrs {
		_ = os.Remove(toldFile(runDir, a)) // that there is none is as well
	}
}

// WaitTold is Wait, for a host whose daemon may tell.
func WaitTold(ctx context.Context, runDir string, addrs []netip.Addr) (inForce, fail bool, err error) {
	begin := time.Now()
	for pause := 200 * time.Microsecond; time.Since(begin) < hint && ctx.Err() == nil; pause = min(pause*3/2, 300*time.Microsecond) {
		if allTold(runDir, addrs) {
			Forget(runDir, addrs)
			return true, false, nil
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
	return Wait(ctx, addrs)
}

func allTold(runDir string, addrs []netip.Addr) bool {
	for _, a := range addrs {
		if _, err := os.Lstat(toldFile(runDir, a)); err != nil {
			return false
		}
	}
	return true
}

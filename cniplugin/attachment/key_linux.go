package attachment

import (
	"context"
	"errors"
	"hash/fnv"
	"os"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"
)

// LockKey waits, until ctx ends, for all others that work on the attachment k, and keeps them waiting until Close. Each
// attachment has a byte of one file, which stays empty; that two have the same one does no harm.
func (s *Store) LockKey(ctx context.Context, k Key) (err error) {
	if s.key, err = s.root.OpenFile("lock", os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return failf(types.ErrIOFailure, "dataDir: %v", err)
	}
	hash := fnv.New64a()
	_, _ = hash.Write([]byte(k.Network + "/" + k.fileName()))
	lock := unix.Flock_t{Type: unix.F_WRLCK, Start: int64(hash.Sum64() >> 2), Len: 1}
	for {
		err := unix.FcntlFlock(s.key.Fd(), unix.F_OFD_SETLK, &lock)
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			return err
		}
		select {
		case <-ctx.Done():
			return failf(types.ErrTryAgainLater, "dataDir: another overlay plugin works on %s of container %s", k.IfName, k.ContainerID)
		case <-time.After(5 * time.Millisecond):
		}
	}
}
